"use strict";
(() => {
  // A browser keeps about sixteen WebGL contexts and silently drops the oldest.
  const MOST_WEBGL = 12;
  const root = document.documentElement;
  root.classList.add("js");

  const frames = [...document.querySelectorAll(".frame")];
  const drawn = new Set();

  function distance(frame) {
    const box = frame.getBoundingClientRect();
    return Math.abs((box.top + box.bottom) / 2 - window.innerHeight / 2);
  }

  function fit(frame) {
    const width = Number(frame.dataset.width);
    const height = Number(frame.dataset.height);
    const scale = Math.min(1, frame.clientWidth / width);
    const plot = frame.querySelector(".plot");
    plot.style.transform = scale < 1 ? `scale(${scale})` : "";
    if (frame.classList.contains("drawn")) frame.style.height = `${height * scale}px`;
  }

  function purge(frame) {
    drawn.delete(frame);
    frame.classList.remove("drawn");
    frame.style.height = "";
    Plotly.purge(frame.querySelector(".plot"));
  }

  function makeRoom() {
    const webgl = [...drawn].filter((frame) => "webgl" in frame.dataset);
    webgl.sort((a, b) => distance(b) - distance(a));
    while (webgl.length >= MOST_WEBGL) purge(webgl.shift());
  }

  async function draw(frame) {
    if (drawn.has(frame)) return;
    if ("webgl" in frame.dataset) makeRoom();
    drawn.add(frame);
    const plot = frame.querySelector(".plot");
    const { data, layout } = JSON.parse(frame.querySelector("script").textContent);
    layout.width = Number(frame.dataset.width);
    layout.height = Number(frame.dataset.height);
    layout.modebar = { orientation: "v", bgcolor: "rgba(255,255,255,.8)" };
    try {
      await Plotly.newPlot(plot, data, layout, {
        displaylogo: false,
        responsive: false,
        modeBarButtons: [["webgl" in frame.dataset ? "resetCameraDefault3d" : "resetScale2d", "toImage"]],
      });
      if (!drawn.has(frame)) return;
      frame.classList.add("drawn");
      fit(frame);
    } catch (error) {
      // The stored image stays.
      frame.classList.add("failed");
    }
  }

  if (frames.length) {
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
    }, { rootMargin: "500px 0px" });
    for (const frame of frames) near.observe(frame);
    window.addEventListener("resize", () => frames.forEach(fit));
  }

  // What is folded away would be missing on paper.
  const opened = [];
  window.addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details:not([open])")) {
      part.open = true;
      opened.push(part);
    }
  });
  window.addEventListener("afterprint", () => {
    for (const part of opened.splice(0)) part.open = false;
  });

  // The claims table: rows by verdict, and in the order of rows or of verdicts.
  const filter = document.getElementById("claim-filter");
  const table = document.getElementById("claims-table");
  const rows = [...table.tBodies];
  const buttons = [...filter.querySelectorAll("button")];
  const order = buttons.map((button) => button.dataset.verdict);
  filter.hidden = false;

  function show(verdict) {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.verdict === verdict));
    }
    for (const row of rows) row.hidden = verdict !== "" && row.dataset.verdict !== verdict;
  }
  for (const button of buttons) {
    button.addEventListener("click", () => show(button.dataset.verdict));
  }
  document.getElementById("claim-order").addEventListener("change", (event) => {
    const byVerdict = event.target.value === "verdict";
    const place = (row) => (byVerdict ? order.indexOf(row.dataset.verdict) : 0);
    rows.sort((a, b) => place(a) - place(b) || a.dataset.id - b.dataset.id);
    table.append(...rows);
  });
  // A link to a row that is filtered out shows all rows again.
  function reveal() {
    const row = rows.find((one) => `#${one.id}` === window.location.hash);
    if (row && row.hidden) {
      show("");
      row.scrollIntoView();
    }
  }
  window.addEventListener("hashchange", reveal);
})();
