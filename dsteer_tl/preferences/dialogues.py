"""Dialogues written as plain text, in the form of Anthropic's HH: Human and Assistant in turn."""

from __future__ import annotations

from collections.abc import Iterable

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"


def render_prompt(turns: Iterable[tuple[bool, str]]) -> str:
    r"""Write turns as a prompt that an assistant's answer continues.

    Args:
        turns: (is the human speaking, text), oldest first.

    Returns:
        The dialogue, ending in "\n\nAssistant:"; an answer continues it with " text".
    """
    lines = (f"{HUMAN if human else ASSISTANT} {text.strip()}" for human, text in turns)
    return "".join(lines) + ASSISTANT


def split_dialogue(text: str) -> tuple[str, str] | None:
    r"""Divide a dialogue into (prompt up to and with the last "\n\nAssistant:", final answer).

    Returns:
        None when the assistant never speaks, or a human has the last word.
    """
    head, marker, answer = text.rpartition(ASSISTANT)
    if not marker or HUMAN in answer:
        return None
    return head + marker, answer


def opening(prompt: str) -> str:
    """The first human turn of a dialogue, or the whole prompt when it is not a dialogue.

    Prompts cut from one conversation at different depths share it, so a split that keeps equal
    openings together never trains on an answer that a held-out prompt quotes.
    """
    if not prompt.startswith(HUMAN):
        return prompt
    return prompt.partition(ASSISTANT)[0]
