// Draws each figure from the JSON beside it, in the colours of the page; draws all again when the
// page turns light or dark.
const plots = [...document.querySelectorAll(".plot")].map((element) => [
  element,
  JSON.parse(element.nextElementSibling.textContent),
]);

function template() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const axis = {
    gridcolor: colour("grid"),
    zeroline: false,
    tickfont: { color: colour("quiet"), size: 12 },
    title: { font: { color: colour("quiet"), size: 13 }, standoff: 8 },
  };
  const layout = {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    title: { font: { size: 13, color: colour("quiet") } },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    xaxis: axis,
    yaxis: axis,
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
  };
  return { layout };
}

function draw() {
  for (const [element, figure] of plots) {
    const { data, layout } = structuredClone(figure); // plotly changes its arguments
    Plotly.react(element, data, { ...layout, template: template() }, { responsive: true, displayModeBar: false });
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
