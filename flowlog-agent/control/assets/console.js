"use strict";
// What pages cannot do by themselves: times in the reader's zone, keys, the chart, and a word when the node does not answer.
(() => {
  const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

  const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

  const times = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      const words = Number.isNaN(at.getTime()) ? null : (time.matches(".clock") ? clock : zoned).format(at);
      if (words && time.textContent !== words) time.textContent = words;
    }
  };

  // Charts.
  const charts = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const seen = (name) => {
    // A custom property may be a pair for light and dark: only an element knows which.
    const probe = document.createElement("i");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value || colour(name);
  };
  const draw = async (plot) => {
    let traffic;
    try {
      const answer = await fetch(plot.dataset.history, { headers: { accept: "application/json" } });
      if (!answer.ok) return;
      traffic = await answer.json();
    } catch {
      return;
    }
    const data = [traffic.at_secs, traffic.accepted, traffic.rejected, traffic.lost];
    const known = charts.get(plot);
    if (known) {
      known.setData(data);
      return;
    }
    const grid = { stroke: seen("--quiet"), grid: { stroke: seen("--line"), width: 1 }, ticks: { stroke: seen("--line") } };
    const line = (label, name, dash) => ({ label, stroke: seen(name), width: 2, dash, value: (_, v) => (v == null ? "-" : v.toFixed(2)) });
    const chart = new uPlot({
      width: plot.clientWidth || 300, height: 220,
      series: [{}, line("accepted", "--green"), line("rejected", "--red", [6, 3]), line("lost", "--yellow", [2, 3])],
      axes: [grid, { ...grid, size: 60 }],
      // An hour at least: a chart that has just begun is not one of seconds, or of years.
      scales: {
        x: {
          range: (chart) => {
            const at = chart.data[0];
            const end = at[at.length - 1] ?? Date.now() / 1000;
            return [Math.min(at[0] ?? end, end - 3600), end];
          },
        },
        y: { range: (_, low, high) => [0, Math.max(high, 1)] },
      },
    }, data, plot);
    charts.set(plot, chart);
    new ResizeObserver(() => chart.setSize({ width: plot.clientWidth || 300, height: 220 })).observe(plot);
  };
  const drawAll = () => document.querySelectorAll("[data-history]").forEach(draw);

  // What is refused now: looked at from when its part of the page is opened to when it is closed.
  const LINES_MAX = 200;
  const watch = (details) => {
    const [list, sums, note, pause] = [".live", ".sums", ".note", ".pause"].map((css) => details.querySelector(css));
    let source = null;
    let held = 0;
    const isPaused = () => pause.getAttribute("aria-pressed") === "true";
    const say = (words) => { note.textContent = words; };
    // Made on the node, where all that others say is text.
    const made = (html) => {
      const template = document.createElement("template");
      template.innerHTML = html;
      times(template.content);
      return template.content;
    };
    pause.addEventListener("click", () => {
      pause.setAttribute("aria-pressed", String(!isPaused()));
      held = 0;
      say(isPaused() ? "paused" : "");
    });
    details.addEventListener("toggle", () => {
      source?.close();
      source = null;
      if (!details.open) return;
      say("looking …");
      source = new EventSource(details.dataset.watch);
      source.addEventListener("open", () => { if (!isPaused()) say(""); });
      source.addEventListener("flows", (event) => {
        const lines = made(event.data);
        if (isPaused()) {
          held += lines.children.length;
          say(`paused; ${held} lines not shown`);
          return;
        }
        list.prepend(lines);
        while (list.children.length > LINES_MAX) list.lastElementChild.remove();
      });
      source.addEventListener("sums", (event) => sums.replaceChildren(made(event.data)));
      source.addEventListener("lost", (event) => say(`${event.data} lines were lost on their way`));
      source.addEventListener("problem", (event) => {
        say(event.data);
        source.close();
      });
      source.addEventListener("error", () => say("the stream is interrupted; trying again"));
    });
  };
  document.querySelectorAll("[data-watch]").forEach(watch);

  // Keys: `/` searches, arrows walk the tree.
  const typing = (element) => /^(INPUT|SELECT|TEXTAREA)$/.test(element.tagName) || element.isContentEditable;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.getElementById("search");
    if (event.key === "/" && search && !typing(event.target)) {
      event.preventDefault();
      search.focus();
      search.select();
    }
    const leaves = [...document.querySelectorAll("#tree .leaf")].filter((leaf) => leaf.offsetParent);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !leaves.length) return;
    const at = leaves.indexOf(document.activeElement);
    if (at >= 0) {
      event.preventDefault();
      (leaves[at + step] || leaves[at]).focus();
    } else if (event.target === search && step > 0) {
      event.preventDefault();
      leaves[0].focus();
    }
  });

  // Whether the node answers.
  const lost = (is) => {
    const banner = document.getElementById("lost");
    if (banner) banner.hidden = !is;
  };
  document.addEventListener("htmx:error", () => lost(true));
  document.addEventListener("htmx:response:error", (event) => lost((event.detail?.ctx?.response?.status ?? 0) >= 500));
  document.addEventListener("htmx:after:swap", () => { lost(false); times(document); });

  times(document);
  drawAll();
  setInterval(drawAll, 30000);
})();
