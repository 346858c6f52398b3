"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map(); // element -> figure
  // Nothing is dragged or zoomed: a finger on a chart scrolls the page, and every click counts as one.
  const config = { displayModeBar: false, responsive: true, doubleClick: false, doubleClickDelay: 1 };

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const themed = (figure) => {
    const layout = { ...figure.layout };
    const ink = colour("--ink"), line = colour("--line"), card = colour("--card");
    layout.paper_bgcolor = layout.plot_bgcolor = card;
    layout.font = { ...layout.font, color: ink, size: 12, family: getComputedStyle(document.body).fontFamily };
    layout.dragmode = false;
    layout.hoverlabel = { bgcolor: card, bordercolor: line, font: { color: ink } };
    for (const axis of ["xaxis", "yaxis"]) {
      layout[axis] = { ...layout[axis], gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, fixedrange: true };
    }
    return layout;
  };
  const draw = (element, figure) => {
    drawn.set(element, figure);
    return Plotly.react(element, figure.data, themed(figure), config);
  };
  const redraw = () => { for (const [element, figure] of drawn) if (element.isConnected) draw(element, figure); };

  const element = (tag, content, classes) => {
    const made = document.createElement(tag);
    if (content !== undefined) made.textContent = content; // never as HTML
    if (classes) made.className = classes;
    return made;
  };
  const options = (select, names) => names.forEach((name, value) => {
    const option = element("option", name);
    option.value = value;
    select.append(option);
  });
  // Plotly reads some tags in its texts.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  // Theme: the system's, or what the button says; paper is light.
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preference.matches);
  const label = () => { button.textContent = isDark() ? "light" : "dark"; button.setAttribute("aria-pressed", isDark()); };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); redraw(); });
  preference.addEventListener("change", () => { label(); redraw(); });
  let before;
  window.addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; redraw(); });
  window.addEventListener("afterprint", () => {
    if (before === undefined) delete root.dataset.theme; else root.dataset.theme = before;
    redraw();
  });
  label();

  // Charts of Python's making.
  for (const place of document.querySelectorAll("[data-chart]")) {
    if (!place.closest("[data-quantity]")) draw(place, data.charts[place.dataset.chart]);
  }

  // Heads: one quantity at a time; a click or the two menus choose a cell.
  const quantity = document.getElementById("heads-quantity");
  if (quantity) {
    const heads = data.heads, layer = document.getElementById("cell-layer"), head = document.getElementById("cell-head");
    options(layer, heads.layers);
    options(head, heads.values.mass[0][0].map((_, h) => h));
    const showCell = () => {
      const table = element("table"), names = element("tr");
      table.append(names);
      names.append(element("th", `layer ${heads.layers[layer.value]}, head ${head.value}`), ...heads.models.map((m) => element("th", m)));
      for (const option of quantity.options) {
        const row = element("tr");
        row.append(element("th", option.text));
        heads.values[option.value].forEach((values) => row.append(element("td", values[layer.value][head.value].toFixed(3))));
        table.append(row);
      }
      document.getElementById("cell").replaceChildren(table);
    };
    const showQuantity = () => {
      for (const panel of document.querySelectorAll("[data-quantity]")) {
        panel.hidden = panel.dataset.quantity !== quantity.value;
        if (panel.hidden) continue;
        const place = panel.querySelector("[data-chart]");
        const first = !drawn.has(place);
        draw(place, data.charts[place.dataset.chart]);
        if (first) place.on("plotly_click", (event) => {
          layer.value = heads.layers.map(String).indexOf(String(event.points[0].y));
          head.value = String(event.points[0].x);
          showCell();
        });
      }
    };
    const after = heads.values.mass[1] ?? heads.values.mass[0];
    const top = after.flatMap((row, l) => row.map((value, h) => [value, l, h])).reduce((a, b) => (b[0] > a[0] ? b : a));
    [layer.value, head.value] = [top[1], top[2]];
    quantity.addEventListener("change", showQuantity);
    layer.addEventListener("change", showCell);
    head.addEventListener("change", showCell);
    showQuantity();
    showCell();
  }

  // Prompts: texts coloured by attention, and a head x token map below.
  const choice = document.getElementById("prompt-choice");
  if (choice && data.prompts) {
    const { models, heads, prompts } = data.prompts, chosen = document.getElementById("prompt-heads");
    const verdict = (correct) => (correct ? "correct" : "incorrect");
    options(choice, prompts.map((p) => `${verdict(p.correct[0])} → ${verdict(p.correct[1])}: test prompt ${p.number}, ${p.right}`));
    options(chosen, [`mean of ${heads.length}`, ...heads]);
    const show = () => {
      const prompt = prompts[choice.value];
      const rows = models.map((_, m) => {
        const used = chosen.value === "0" ? prompt.attention[m] : [prompt.attention[m][chosen.value - 1]];
        return prompt.pieces.map((_, t) => used.reduce((sum, row) => sum + row[t], 0) / used.length / 10000);
      });
      const most = Math.max(1e-6, ...rows.map((row) => row.slice(1).reduce((a, b) => Math.max(a, b), 0))); // but for the first token, where idle heads look
      document.getElementById("prompt-texts").replaceChildren(...models.map((model, m) => {
        const card = element("figure"), said = element("p", undefined, "verdict"), text = element("p", undefined, "text");
        said.append(`${model}: predicts `, element("b", prompt.predicted[m], prompt.correct[m] ? "right" : "wrong"), `, correct is ${prompt.right}`);
        text.dir = "auto";
        prompt.pieces.forEach((piece, t) => {
          const span = element("span", piece, "piece");
          const share = rows[m][t];
          span.style.setProperty("--strength", Math.min(1, share / most).toFixed(3));
          span.title = `${(100 * share).toFixed(1)}% of the attention`;
          if (String(t) in prompt.labels) span.classList.add(prompt.labels[t] ? "right" : "wrong");
          text.append(span);
        });
        card.append(said, text);
        return card;
      }));
      const maps = document.getElementById("prompt-maps");
      const largest = Math.max(...models.map((_, m) => prompt.attention[m].reduce((a, row) => row.slice(1).reduce((b, v) => Math.max(b, v), a), 1)));
      maps.replaceChildren(...models.map((model) => {
        const card = element("figure"), caption = element("figcaption"), place = element("div", undefined, "chart");
        caption.append(element("strong", `Head × token, ${model}`), "Attention of the last token, head by head; columns with a name are labels of demonstrations.");
        place.setAttribute("role", "img");
        place.setAttribute("aria-label", `Attention of ${heads.length} heads on ${prompt.pieces.length} tokens, ${model}`);
        card.append(caption, place);
        return card;
      }));
      [...maps.querySelectorAll(".chart")].forEach((place, m) => {
        const marks = Object.keys(prompt.labels).map(Number);
        draw(place, {
          data: [{
            type: "heatmap", z: prompt.attention[m].map((row) => row.map((v) => v / 10000)), y: heads, zmin: 0, zmax: largest / 10000,
            colorscale: "Cividis", colorbar: { thickness: 8, title: { text: "share" } },
            text: prompt.attention[m].map(() => prompt.pieces.map(plain)),
            hovertemplate: "%{y}<br>token %{x}: %{text}<br>%{z:.3f}<extra></extra>",
          }],
          layout: {
            margin: { l: 60, r: 16, t: 12, b: 60 },
            xaxis: {
              title: { text: "token" }, tickvals: marks,
              ticktext: marks.map((t) => `${plain(prompt.pieces[t].trim())} ${prompt.labels[t] ? "✓" : "✗"}`),
            },
            yaxis: { title: { text: "head" }, type: "category", autorange: "reversed" },
          },
        });
      });
    };
    choice.addEventListener("change", show);
    chosen.addEventListener("change", show);
    show();
  }
  root.dataset.ready = "true";
})();
