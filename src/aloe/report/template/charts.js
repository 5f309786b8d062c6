// Plain SVG charts that are drawn anew when their width changes, so that text never shrinks.

import { decimal, html, percent, svg, whole } from './dom.js';

const MARGIN = { top: 26, right: 14, bottom: 40, left: 46 };

/** Calls `draw(width)`, which returns a node, now and whenever the container's width changes. */
export function responsive(container, draw) {
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(container.clientWidth);
    if (width && width !== drawn) {
      drawn = width;
      container.replaceChildren(draw(width));
    }
  };
  container.observer?.disconnect();
  container.observer = new ResizeObserver(redraw);
  container.observer.observe(container);
  redraw();
}

/** Round numbers that cover a range, about `count` of them. */
export function ticks(low, high, count = 5) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Writes a tick with as many digits as tell it from its neighbour. */
const asFineAs = ([first, second]) => (value) =>
  decimal(value, second == null ? 2 : Math.max(0, -Math.floor(Math.log10(second - first) + 1e-9)));

export function extent(values, padding = 0.05) {
  const known = values.filter((value) => value != null);
  if (!known.length) return [0, 1];
  const low = known.reduce((a, b) => Math.min(a, b));
  const high = known.reduce((a, b) => Math.max(a, b));
  const more = (high - low || Math.abs(high) || 1) * padding;
  return [low - more, high + more];
}

/** One plot: two linear axes, and marks that are placed by them. */
export class Plot {
  constructor({ width, height, x, y, label, margin = MARGIN }) {
    Object.assign(this, { width, height, margin });
    this.root = svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': label });
    const along = (domain, from, to) => (value) =>
      from + ((value - domain[0]) / (domain[1] - domain[0] || 1)) * (to - from);
    this.x = along(x.domain, margin.left, width - margin.right);
    this.y = along(y.domain, height - margin.bottom, margin.top);
    this.#axes(x, y);
  }

  #axes(x, y) {
    const { left, right, top, bottom } = this.margin;
    const foot = this.height - bottom;
    const along = x.ticks ?? ticks(...x.domain, Math.max(2, (this.width - left - right) / 90));
    for (const tick of along) {
      this.add('line', { class: 'tick', x1: this.x(tick), x2: this.x(tick), y1: foot, y2: foot + 4 });
      this.text((x.format ?? asFineAs(along))(tick), this.x(tick), foot + 16, 'middle');
    }
    const up = y.ticks ?? ticks(...y.domain, Math.max(3, (foot - top) / 45));
    for (const tick of up) {
      this.add('line', { class: 'rule', x1: left, x2: this.width - right, y1: this.y(tick), y2: this.y(tick) });
      this.text((y.format ?? asFineAs(up))(tick), left - 7, this.y(tick) + 4, 'end');
    }
    if (x.label) this.text(x.label, this.width - right, this.height - 5, 'end', 'label');
    if (y.label) this.text(y.label, 0, 12, 'start', 'label');
  }

  add(tag, attributes, ...children) {
    const node = svg(tag, attributes, ...children);
    this.root.append(node);
    return node;
  }

  text(words, x, y, anchor = 'start', kind = 'note') {
    return this.add('text', { class: kind, x, y, 'text-anchor': anchor }, words);
  }

  /** Through [x, y]; a y that is not known interrupts it. */
  line(points, kind = '') {
    let d = '';
    let pen = 'M';
    for (const [x, y] of points) {
      if (y != null) d += `${pen}${this.x(x).toFixed(1)},${this.y(y).toFixed(1)}`;
      pen = y == null ? 'M' : 'L';
    }
    return this.add('path', { class: `line ${kind}`, d });
  }

  /** Between two lines: [x, low, high]. */
  band(points, kind = '') {
    const there = points.map(([x, low]) => `${this.x(x).toFixed(1)},${this.y(low).toFixed(1)}`);
    const back = points.map(([x, , high]) => `${this.x(x).toFixed(1)},${this.y(high).toFixed(1)}`).reverse();
    return this.add('polygon', { class: `band ${kind}`, points: [...there, ...back].join(' ') });
  }

  mark(x, y, shape, kind = '', title = '') {
    return this.add('path', { class: `mark ${kind}`, d: outline(shape, this.x(x), this.y(y)) }, svg('title', {}, title));
  }
}

const SHAPES = ['circle', 'square', 'triangle', 'diamond'];
export const shapeOf = (index) => SHAPES[index % SHAPES.length];
/** Colours repeat after seven, with another dash: a series is told apart by colour, dash and shape. */
export const seriesOf = (index) => `c${index % 7} ${index >= 7 ? 'dashed' : ''}`;

function outline(shape, x, y, r = 4.5) {
  switch (shape) {
    case 'square': return `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
    case 'triangle': return `M${x},${y - 1.3 * r}l${1.3 * r},${2.3 * r}h${-2.6 * r}z`;
    case 'diamond': return `M${x},${y - 1.4 * r}l${1.4 * r},${1.4 * r}l${-1.4 * r},${1.4 * r}l${-1.4 * r},${-1.4 * r}z`;
    default: return `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0z`;
  }
}

/** Names beside their signs. */
export function key(container, names) {
  container.replaceChildren(...names.map((name, i) => html('span', { class: 'entry' },
    svg('svg', { width: 30, height: 14, 'aria-hidden': 'true' },
      svg('path', { class: `line ${seriesOf(i)}`, d: 'M1,7H29' }),
      svg('path', { class: `mark ${seriesOf(i)}`, d: outline(shapeOf(i), 15, 7) })),
    name)));
}

/** Success over episodes or human steps; every run a line with its interval. */
export function learningCurve(container, runs, against, label) {
  const series = runs.map((run) => run.rounds
    .filter((row) => row.success != null && row[against] != null)
    .map((row) => ({ ...row, x: row[against] })));
  const largest = Math.max(1, ...series.flat().map((row) => row.x));
  responsive(container, (width) => {
    const plot = new Plot({
      width,
      height: Math.min(360, Math.max(240, width * 0.45)),
      label: `Success over ${label}`,
      x: { domain: [0, largest * 1.03], ticks: ticks(0, largest, Math.max(2, width / 110)).filter(Number.isInteger), label },
      y: { domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], format: percent, label: 'success of the policy alone' },
    });
    series.forEach((rows, i) => {
      plot.band(rows.map((row) => [row.x, row.success_low, row.success_high]), seriesOf(i));
    });
    series.forEach((rows, i) => {
      plot.line(rows.map((row) => [row.x, row.success]), seriesOf(i));
      for (const row of rows) {
        const interval = `${percent(row.success_low)} to ${percent(row.success_high)}`;
        if (rows.length === 1) plot.line([[row.x, row.success_low], [row.x, row.success_high]], seriesOf(i));
        plot.mark(row.x, row.success, shapeOf(i), seriesOf(i),
          `${runs[i].label}, round ${row.round}: ${percent(row.success)} (${interval}) after ${whole(row.x)} ${label}`);
      }
    });
    return plot.root;
  });
}

/** Predicted against realised, by decile; other rounds stand behind in grey. */
export function calibration(container, rounds, shown, which) {
  const deciles = rounds.filter((round) => round.deciles)
    .map((round) => ({ round: round.round, rows: round.deciles[which] }));
  const domain = extent(deciles.flatMap(({ rows }) => rows.flatMap((row) => [row.predicted, row.realised])), 0.08);
  responsive(container, (width) => {
    const plot = new Plot({
      width,
      height: Math.min(400, width * 0.9),
      label: `Calibration of the critic of round ${shown}`,
      x: { domain, label: 'predicted' },
      y: { domain, label: 'return that followed' },
    });
    plot.line([[domain[0], domain[0]], [domain[1], domain[1]]], 'ideal');
    const points = (rows) => rows.map((row) => [row.predicted, row.realised]);
    for (const { rows } of deciles.filter(({ round }) => round !== shown)) plot.line(points(rows), 'faint');
    for (const { rows } of deciles.filter(({ round }) => round === shown)) {
      plot.line(points(rows), 'c0');
      for (const row of rows) {
        plot.mark(row.predicted, row.realised, 'circle', 'c0',
          `predicted ${decimal(row.predicted)}, came ${decimal(row.realised)}, over ${row.count} states`);
      }
    }
    if (deciles.length > 1) plot.text('grey: the other rounds', width - 14, 12, 'end');
    return plot.root;
  });
}

/** What estimators said of each policy version against what it was measured to be. */
export function ranking(container, content) {
  const names = Object.keys(content.estimators);
  const rows = content.versions;
  responsive(container, (width) => {
    const plot = new Plot({
      width,
      height: Math.min(400, width * 0.9),
      label: 'Predicted against measured return of each policy version',
      x: { domain: extent(rows.flatMap((row) => names.map((name) => row[name])), 0.12), label: 'predicted' },
      y: { domain: extent(rows.map((row) => row.return), 0.12), label: 'measured return' },
    });
    names.forEach((name, i) => {
      for (const row of rows) {
        plot.mark(row[name], row.return, shapeOf(i), seriesOf(i),
          `${name}: version ${row.version} predicted ${decimal(row[name])}, measured ${decimal(row.return)}`);
        plot.text(String(row.version), plot.x(row[name]) + 8, plot.y(row.return) - 5);
      }
    });
    return plot.root;
  });
}

/** A row for each source, one above the other, on one axis. */
export function histogram(container, { edges, shares }, label, notes) {
  const sources = Object.keys(shares);
  const each = 74;
  responsive(container, (width) => {
    const plot = new Plot({
      width,
      height: each * sources.length + 44,
      label: `Distribution of the ${label} by source`,
      margin: { top: 4, right: 14, bottom: 40, left: 8 },
      x: { domain: [edges[0], edges.at(-1)], label },
      y: { domain: [0, 1], ticks: [] },
    });
    sources.forEach((source, i) => {
      const foot = 4 + each * (i + 1);
      const scale = (each - 28) / Math.max(...shares[source], 1e-9);
      let d = `M${plot.x(edges[0])},${foot}`;
      shares[source].forEach((share, bin) => {
        d += `V${(foot - share * scale).toFixed(1)}H${plot.x(edges[bin + 1]).toFixed(1)}`;
      });
      plot.add('path', { class: `area ${source}`, d: `${d}V${foot}Z` });
      plot.add('line', { class: 'tick', x1: 8, x2: width - 14, y1: foot, y2: foot });
      plot.text(source, 8, foot - each + 16, 'start', `name ${source}`);
      plot.text(notes[source], 64, foot - each + 16);
      if (edges[0] < 0 && edges.at(-1) > 0) {
        plot.add('line', { class: 'zero', x1: plot.x(0), x2: plot.x(0), y1: foot - each + 24, y2: foot });
      }
    });
    return plot.root;
  });
}

/** A bar a round, from 0 to 1, with the limits between which all is well. */
export function effectiveShare(container, rounds, [low, high]) {
  const row = 30;
  responsive(container, (width) => {
    const height = rounds.length * row + 46;
    const plot = new Plot({
      width, height,
      label: 'Effective sample size of each round',
      margin: { top: 4, right: 14, bottom: 40, left: 62 },
      x: { domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], format: percent, label: 'of the windows with a weight' },
      y: { domain: [0, 1], ticks: [] },
    });
    plot.add('rect', { class: 'well', x: plot.x(low), y: 4, width: plot.x(high) - plot.x(low), height: height - 44 });
    rounds.forEach((round, i) => {
      const y = 4 + row * i;
      plot.text(`round ${round.round}`, 54, y + 19, 'end');
      if (round.effective_share == null) return;
      const end = plot.x(round.effective_share);
      plot.add('rect', { class: 'bar c0', x: plot.x(0), y: y + 6, width: end - plot.x(0), height: row - 12 });
      const windows = whole(round.effective_share * round.positive);
      const said = `${percent(round.effective_share)}, ${windows} of ${round.positive}`;
      if (round.effective_share > 0.6) plot.text(said, end - 6, y + 19, 'end', 'within');
      else plot.text(said, end + 6, y + 19);
    });
    return plot.root;
  });
}
