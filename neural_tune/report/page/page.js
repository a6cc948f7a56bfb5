"use strict";
// Everything the page needs is in the page: figures as JSON in #figures and #histograms, plotly before this script.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const histograms = JSON.parse(document.getElementById("histograms").textContent);

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // "@good" and the like become the colours of the theme that is shown.
  const painted = (value) => {
    if (typeof value === "string" && value.startsWith("@")) return color(value.slice(1));
    if (Array.isArray(value)) return value.map(painted);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(inner)]));
    }
    return value;
  };

  const draw = (element, figure) => {
    const shown = painted(figure);
    const axis = { gridcolor: color("grid"), zerolinecolor: color("grid"), linecolor: color("line") };
    Object.assign(shown.layout, {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("text"), family: "system-ui, sans-serif", size: 12 },
    });
    Object.assign(shown.layout.xaxis, axis);
    Object.assign(shown.layout.yaxis, axis);
    return Plotly.react(element, shown.data, shown.layout, { responsive: true, displaylogo: false, displayModeBar: false });
  };

  const drawAll = () => {
    for (const [id, figure] of Object.entries(figures)) draw(document.getElementById(id), figure);
  };

  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  const filter = document.getElementById("filter");
  if (filter) {
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      for (const row of document.querySelectorAll("tr.op")) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
      }
    });
  }

  const dialog = document.getElementById("ranges");
  const show = (row) => {
    const holder = document.getElementById("ranges-plots");
    holder.replaceChildren();
    document.getElementById("ranges-title").textContent = row.dataset.op;
    dialog.showModal();
    for (const place of row.dataset.ranges.split(" ")) {
      const seen = histograms[Number(place)];
      const title = document.createElement("p");
      title.textContent = seen.title;
      const plot = document.createElement("div");
      holder.append(title, plot);
      draw(plot, seen.figure);
    }
  };
  for (const row of document.querySelectorAll("tr.op.has-range")) {
    row.addEventListener("click", () => show(row));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter") show(row);
    });
  }
  document.getElementById("ranges-close").addEventListener("click", () => dialog.close());

  drawAll();
  document.body.dataset.drawn = "true";

  // Served while the run is under way: the page is fetched anew when the journal has grown.
  const version = document.body.dataset.version;
  if (document.body.dataset.follow === "true") {
    setInterval(async () => {
      try {
        const answer = await fetch("version");
        if ((await answer.text()) !== version) location.reload();
      } catch {
        // The server is gone: what is shown stays.
      }
    }, 2000);
  }
})();
