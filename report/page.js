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

  /* [r, g, b] of a colour scale, as the chart mixes it. */
  function colourAt(scale, share) {
    const at = Math.min(Math.max(share, 0), 1);
    const next = Math.max(1, scale.findIndex(([end]) => end >= at));
    const [[a, from], [b, to]] = [scale[next - 1], scale[next]];
    const parts = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const end = parts(to);
    return parts(from).map((v, i) => v + ((end[i] - v) * (at - a)) / (b - a));
  }

  /* Black or white: one of both has a contrast of 4.5 or more to any colour (WCAG 2.2). */
  function inkOn(rgb) {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    return (light + 0.05) ** 2 > 0.05 * 1.05 ? "#000" : "#fff";
  }

  /* The legend over the whole width, in two halves side by side where names are short enough. */
  function smallLegend(data, layout) {
    const named = data.filter((trace) => trace.name && trace.showlegend !== false);
    if (layout.showlegend === false || named.length < 2) return;
    const whole = { xref: "container", x: 0, yref: "container", y: 1, yanchor: "top" };
    Object.assign(layout.legend, whole, { font: { size: 10 } });
    const longest = Math.max(...named.map((trace) => trace.name.length));
    if (named.length < 4 || longest > 21) return;
    layout.legend.entrywidth = 118;  // one column each
    layout.legend2 = { ...layout.legend, x: 0.5 };
    named.slice(Math.ceil(named.length / 2)).forEach((trace) => (trace.legend = "legend2"));
  }

  /* Numbers of a heat map as colours: of losses, four powers of ten up to one nat. */
  function heat([trace, words], layout, matrix, kind) {
    const most = Math.max(...matrix.flat().filter((v) => v !== null), 1e-9);
    const log = kind === "log";
    const colour = (v) => (v === null ? null : log ? Math.log10(Math.max(v, 1e-4)) : v);
    trace.z = matrix.map((row) => row.map(colour));
    trace.customdata = matrix.map((row) => row.map((v) => written(v, kind)));
    const [low, high] = log ? [-4, 0] : [0, most];
    Object.assign(layout.coloraxis, { cmin: low, cmax: high });
    const scale = layout.coloraxis.colorscale.map(([at, colour]) => [at, isDark() ? dark[colour] : colour]);
    const cells = trace.z.flat();
    words.text = matrix.flat().map((v) => brief(v, kind));
    words.textfont = {
      size: layout.font.size,
      color: cells.map((z) => (z === null ? "#000" : inkOn(colourAt(scale, (z - low) / (high - low))))),
    };
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
        if (data[0].type === "heatmap") heat(data, layout, matrix, kind.meta);
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
        smallLegend(data, layout);
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
