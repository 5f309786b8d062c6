// Elements and numbers. Everything that comes from a run goes through text nodes, never through innerHTML.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

export const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
export const byId = (id) => document.getElementById(id);

export const unknown = '–';
export const decimal = (value, digits = 2) => (value == null ? unknown : value.toFixed(digits).replace('-', '−'));
export const percent = (value) => (value == null ? unknown : `${Math.round(100 * value)}%`);
export const whole = (value) => (value == null ? unknown : String(Math.round(value)));

export function minutes(seconds) {
  const rounded = Math.round(seconds);
  const parts = [Math.floor(rounded / 60) % 60, rounded % 60].map((part) => String(part).padStart(2, '0'));
  const hours = Math.floor(rounded / 3600);
  return hours ? `${hours}:${parts.join(':')}` : `${Number(parts[0])}:${parts[1]}`;
}

/** A table of rows of cells; a cell is a text, a number or a node. The first column heads its row. */
export function table(node, heads, rows) {
  node.replaceChildren(
    html('thead', {}, html('tr', {}, heads.map((head) => html('th', { scope: 'col' }, head)))),
    html('tbody', {}, rows.map((cells) => html('tr', {}, cells.map((cell, i) =>
      i ? html('td', {}, cell) : html('th', { scope: 'row' }, cell))))),
  );
}

/** One choice of few, as radio buttons. Calls back at once with the first choice, or with `initial`. */
export function segments(fieldset, choices, chosen, initial = choices[0][0]) {
  const legend = fieldset.querySelector('legend');
  fieldset.hidden = choices.length < 2;
  fieldset.replaceChildren(legend, ...choices.map(([value, name]) => html('label', {},
    html('input', {
      type: 'radio', name: fieldset.id, value, checked: value === initial, onchange: () => chosen(value),
    }),
    html('span', {}, name))));
  chosen(initial);
}
