"""`Experiment`: a whole run, or one part of it on what is there already."""

from __future__ import annotations

from collections.abc import Sequence

from dsteer_tl.errors import PairError, RunError
from dsteer_tl.experiment.configuration import to_yaml
from dsteer_tl.experiment.judging import MULTIVERSE
from dsteer_tl.experiment.main_stages import MainStages
from dsteer_tl.experiment.other_captures import OTHER_CAPTURES
from dsteer_tl.experiment.run_directory import StageReport, hardware, versions
from dsteer_tl.experiment.stressing import StressRun, run_stress, stress_tables
from dsteer_tl.experiment.study import STUDY_TABLES, run_study
from dsteer_tl.experiment.study_inputs import StudyInputs
from dsteer_tl.experiment.sweep_inputs import SweepInputs
from dsteer_tl.experiment.sweeping import SWEEP_TABLES, describe_sweeps, run_sweeps
from dsteer_tl.files import hash_file, replacing
from dsteer_tl.measurements import AUDIT_TABLES, TABLES


class Experiment(MainStages):
    """One run: its stages, and what is loaded so far.

    With several processes each calls the same method and comes to every stage.
    """

    def run(self) -> list[StageReport]:
        """Run every stage up to the tables; finished ones are left as they are.

        Raises:
            DsteerError: Something is wrong with settings, data, models or the disk.
        """
        self._write_settings()
        reports = [self.preferences_stage()]
        if not self.configuration.policy:
            reports.append(self.training_stage())
        reports.append(self.capture_stage())
        names = self.table_names(TABLES)
        trained = () if self.configuration.policy else ("training", "formation")
        hashes = self.shift_set.hashes
        differ = hashes["base"] != hashes["policy"]
        audited = self.table_names(AUDIT_TABLES) if self.attributed and differ else ()
        swept = SWEEP_TABLES if differ and self.configuration.sweep.suites else ()
        studied = STUDY_TABLES if differ and self.configuration.toxicity.enabled else ()
        stress = StressRun.of(self, self.capture_keys())
        kept = (*audited, *swept, *studied, *(stress_tables(stress) if differ else ()))
        self.directory.keep_tables([*names, *trained, *kept, MULTIVERSE])
        reports += [self.table_stage(name, TABLES) for name in names]
        reports += [self.table_stage(name, AUDIT_TABLES) for name in audited]
        if swept:
            reports += run_sweeps(SweepInputs.of(self, self.capture_keys()))
        if studied:
            reports += run_study(StudyInputs.of(self, self.model_keys()))
        if differ and self.configuration.stress.tests:
            reports += run_stress(stress)
        if differ and self.configuration.audit.multiverse:
            reports.append(self.other_captures_stage())
        else:
            self.directory.drop(OTHER_CAPTURES)
        # A run that had nothing to do says nothing of the machine that did it.
        if any(report.ran for report in reports):
            self._describe()
        return reports

    def sweep(self, only: Sequence[str] = ()) -> list[StageReport]:
        """Run the sweeps alone, on the residuals that this run has captured.

        Args:
            only: Names of the suites to sweep; empty for all of the configuration.

        Raises:
            RunError: The run has no captured residuals.
            DsteerError: A suite cannot be had, or steering fails its check.
        """
        self._require_capture()
        reports = run_sweeps(SweepInputs.of(self, self.capture_keys()), only)
        # Now that they could be run: a suite that cannot be had would stop every later sweep.
        self._write_settings()
        return reports

    def describe_sweeps(self) -> list[str]:
        """What the sweeps would run and cost, one line a suite.

        Raises:
            RunError: The run has no captured residuals.
        """
        self._require_capture()
        return describe_sweeps(SweepInputs.of(self, self.capture_keys()))

    def stress(self, only: Sequence[str] = ()) -> list[StageReport]:
        """Run the stress tests alone, on the residuals that this run has captured.

        Args:
            only: Tests that were asked for by name; what they lack is an error.

        Raises:
            RunError: The run has no captured residuals.
            PairError: Base and policy hold the same weights.
            DsteerError: A test that was asked for cannot run.
        """
        self._require_capture()
        if self.shift_set.hashes["base"] == self.shift_set.hashes["policy"]:
            raise PairError(
                f"base and policy of {self.directory.path} have the same weights: there is no "
                "shift to stress"
            )
        reports = run_stress(StressRun.of(self, self.capture_keys()), only)
        # Now that they could be run: a test that cannot would stop every later one.
        self._write_settings()
        return reports

    def _require_capture(self) -> None:
        if "capture" not in self.directory.manifest["stages"]:
            raise RunError(
                f"{self.directory.path} has no captured residuals to take vectors from: finish the "
                "run first, with dsteer reproduce or dsteer analyze"
            )

    def study(self) -> list[StageReport]:
        """Run the stages up to the policy and then the toxicity study, without the rest.

        Raises:
            DsteerError: Something is wrong with settings, data, models or the disk.
        """
        self._write_settings()
        reports = [self.preferences_stage()]
        if not self.configuration.policy:
            reports.append(self.training_stage())
        reports += run_study(StudyInputs.of(self, self.model_keys()))
        self._describe()
        return reports

    def train(self) -> list[StageReport]:
        """Run the stages up to the policy.

        Raises:
            DsteerError: Something is wrong with settings, data, models or the disk.
        """
        self._write_settings()
        return [self.preferences_stage(), self.training_stage()]

    def _describe(self) -> None:
        if not self.processes.is_main:
            return
        captured = "capture" in self.directory.manifest["stages"]
        self.directory.describe(
            {
                "name": self.configuration.name,
                "models": {
                    "base": {"source": self.configuration.base},
                    "policy": {"source": self.configuration.policy or "trained in this run"},
                    "weights": self.shift_set.hashes if captured else {},
                },
                "versions": versions(),
                "hardware": hardware() | {"processes": self.processes.count},
                "seeds": {
                    "preferences": self.configuration.preferences.seed,
                    "sampling": self.configuration.preferences.sampling.seed,
                    "training": self.configuration.training.seed,
                    "measurement": self.configuration.measurement.seed,
                    "toxicity": self.configuration.toxicity.seed,
                    "stress": self.configuration.stress.seed,
                },
            }
        )

    def _write_settings(self) -> None:
        if not self.processes.is_main:
            return
        path = self.directory / "config.yaml"
        with replacing(path) as temporary:
            temporary.write_text(to_yaml(self.configuration), "utf-8")
        self.directory.describe({"config": hash_file(path)})
