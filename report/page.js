"use strict";
/* Draws the charts from the JSON beside them, in the theme and width of the screen. */
(() => {
  const root = document.documentElement;
  const dark = JSON.parse(document.getElementById("dark-colours").textContent);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };

  /* The same data with the dark theme's partner of every colour. */
  function themed(value) {
    if (typeof value === "string") return dark[value] || value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v)]));
    return value;
  }

  /* A layout with the parts of another in their places. */
  function merged(layout, patch) {
    const isPart = (v) => v && typeof v === "object" && !Array.isArray(v);
    for (const [name, value] of Object.entries(patch))
      layout[name] = isPart(value) ? merged(layout[name] || {}, value) : value;
    return layout;
  }

  const written = (value, kind) => {
    if (value === null) return "–";
    return kind === "share" ? `${(100 * value).toPrecision(3) * 1} %` : `${value.toPrecision(4) * 1}`;
  };
  const brief = (value, kind) => {
    if (value === null) return "";
    if (kind === "share") return `${(100 * value).toFixed(value < 0.0995 && value > 0 ? 1 : 0)} %`;
    return value > 0 && value < 0.0005 ? "<0.001" : value.toFixed(value < 0.9995 ? 3 : 2);
  };

  /* Numbers of a heat map as colours: of losses, four powers of ten up to one nat. */
  function heat(trace, layout, matrix, kind) {
    const most = Math.max(...matrix.flat().filter((v) => v !== null), 1e-9);
    const log = kind === "log";
    const colour = (v) => (v === null ? null : log ? Math.log10(Math.max(v, 1e-4)) : v);
    trace.z = matrix.map((row) => row.map(colour));
    trace.text = matrix.map((row) => row.map((v) => brief(v, kind)));
    trace.texttemplate = "%{text}";
    Object.assign(layout.coloraxis, log ? { cmin: -4, cmax: 0 } : { cmin: 0, cmax: most });
  }

  function chart(element) {
    const plot = element.querySelector(".plot");
    const source = JSON.parse(element.querySelector("script").textContent);
    const selects = [...element.querySelectorAll(".controls select")];
    const choices = selects.filter((s) => !("highlights" in s.dataset));
    const marker = selects.find((s) => "highlights" in s.dataset);
    const rows = [...element.querySelectorAll(".figures tbody tr")];

    function draw() {
      const data = structuredClone(source.data);
      const layout = structuredClone(source.layout);
      const values = choices.map((s) => s.value);
      const matrix = source.views[values.join("|")];
      const kind = values.map((v) => source.frames[v]).find(Boolean) || {};
      if (matrix) {
        if (data[0].type === "heatmap") heat(data[0], layout, matrix, kind.meta);
        else matrix.forEach((row, i) => (data[i].y = row));
        for (const [part, patch] of Object.entries(kind))
          if (part !== "meta") layout[part] = patch;
        rows.forEach((row, i) =>
          [...row.querySelectorAll("td")].forEach(
            (cell, j) => (cell.textContent = written(matrix[i][j], kind.meta))));
      }
      const chosen = marker ? marker.selectedIndex - 1 : -1;
      if (chosen >= 0) {
        const line = data.splice(chosen, 1)[0];
        line.line = { ...line.line, width: 4, color: source.layout.font.color, dash: "solid" };
        line.showlegend = true;
        data.push(line);
      }
      if (narrow.matches) {
        layout.font.size = 11;
        data.forEach((trace) => { if (trace.mode) trace.mode = trace.mode.replace("+text", ""); });
        layout.annotations = (layout.annotations || []).filter((a) => a.name !== "wide");
        merged(layout, source.narrow);
      }
      const [d, l] = isDark() ? [themed(data), themed(layout)] : [data, layout];
      Plotly.react(plot, d, l, config);
    }
    selects.forEach((select) => select.addEventListener("change", draw));
    draw();
    return draw;
  }

  const draws = [...document.querySelectorAll(".chart")].map(chart);
  const redraw = () => draws.forEach((draw) => draw());

  const button = document.getElementById("theme");
  const label = () => (button.textContent = isDark() ? "Light theme" : "Dark theme");
  function turn(theme) {
    root.dataset.theme = theme;
    label();
    redraw();
  }
  button.hidden = false;
  button.addEventListener("click", () => turn(isDark() ? "light" : "dark"));
  prefersDark.addEventListener("change", () => { label(); redraw(); });
  narrow.addEventListener("change", redraw);
  label();

  let before;
  addEventListener("beforeprint", () => { before = isDark() ? "dark" : "light"; turn("light"); });
  addEventListener("afterprint", () => turn(before));
})();
