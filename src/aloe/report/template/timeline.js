// What the critics said along an episode, beneath its video; a click seeks.

import { decimal, svg } from './dom.js';
import { Plot, extent, responsive, ticks } from './charts.js';

const LEFT = 40;
const RIGHT = 10;
const BAND = 24;
const PANELS = [
  { line: 'value', name: 'value V', height: 120, with: 'return', withName: 'return that followed' },
  { line: 'advantage', name: 'advantage of what was executed', height: 84, zero: true },
  { line: 'spread', name: 'doubt: spread of the ensemble', height: 66, floor: true },
  { line: 'weight', name: 'weight in learning', height: 66, floor: true },
];

/** Ranges that all episodes share, so that two can be compared by eye. */
export function ranges(episodes) {
  return Object.fromEntries(PANELS.map((panel) => {
    const values = episodes.flatMap((one) => [...(one.lines[panel.line] ?? []), ...(one.lines[panel.with] ?? [])]);
    if (panel.floor || panel.zero) values.push(0);
    const [low, high] = extent(values);
    return [panel.line, [panel.floor ? 0 : low, high]];
  }));
}

export class Timeline {
  #cursors = [];
  #readings = [];
  #step = 0;

  /** `seek` is called with a step when the time line is clicked or dragged along. */
  constructor(container, episode, shared, seek) {
    this.episode = episode;
    this.container = container;
    container.onpointerdown = (event) => {
      container.setPointerCapture(event.pointerId);
      seek(this.#stepAt(event));
    };
    container.onpointermove = (event) => container.hasPointerCapture(event.pointerId) && seek(this.#stepAt(event));
    responsive(container, (width) => this.#draw(width, shared));
  }

  #stepAt(event) {
    const box = this.container.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    return Math.min(Math.max(Math.floor(share * this.episode.steps), 0), this.episode.steps - 1);
  }

  show(step) {
    this.#step = step;
    for (const { node, plot } of this.#cursors) {
      node.setAttribute('x1', plot.x(step + 0.5));
      node.setAttribute('x2', plot.x(step + 0.5));
    }
    for (const { node, values } of this.#readings) node.textContent = decimal(values[step]);
  }

  #draw(width, shared) {
    this.#cursors = [];
    this.#readings = [];
    const group = document.createDocumentFragment();
    group.append(this.#actors(width));
    for (const panel of PANELS) {
      if (this.episode.lines[panel.line]) group.append(this.#panel(panel, width, shared[panel.line]));
    }
    group.append(this.#seconds(width));
    this.show(this.#step);
    return group;
  }

  #plot(width, height, y, label, top = 20) {
    return new Plot({
      width, height, y, label,
      x: { domain: [0, this.episode.steps], ticks: [] },
      margin: { top, right: RIGHT, bottom: 4, left: LEFT },
    });
  }

  #cursor(plot) {
    const node = plot.add('line', { class: 'cursor', y1: plot.margin.top - 2, y2: plot.height });
    this.#cursors.push({ node, plot });
  }

  #actors(width) {
    const plot = this.#plot(width, BAND + 22, { domain: [0, 1], ticks: [] }, 'Executed by');
    plot.text('executed by', LEFT, 12, 'start', 'name');
    for (const { source, start, end } of this.episode.actors) {
      const x = plot.x(start);
      const wide = plot.x(end) - x;
      plot.add('rect', { class: `actor ${source}`, x, y: 20, width: wide, height: BAND },
        svg('title', {}, `${source}, steps ${start} to ${end - 1}`));
      if (wide > 8 * source.length) plot.text(source, x + wide / 2, 20 + BAND / 2 + 4, 'middle', 'within');
    }
    for (const step of this.episode.takeovers.filter((one) => one > 0)) {
      const x = plot.x(step);
      const words = x + 140 < width ? '✂ the human takes over' : '✂';
      plot.add('line', { class: 'cut', x1: x, x2: x, y1: 2, y2: BAND + 22 });
      if (x > LEFT + 72) plot.text(words, x + 5, 12);
    }
    this.#cursor(plot);
    return plot.root;
  }

  #panel(panel, width, domain) {
    const { episode } = this;
    const values = episode.lines[panel.line];
    const height = episode.video ? panel.height : 1.5 * panel.height;
    const plot = this.#plot(width, height, { domain }, panel.name);
    for (const step of episode.takeovers.filter((one) => one > 0)) {
      plot.add('line', { class: 'cut', x1: plot.x(step), x2: plot.x(step), y1: 20, y2: height });
    }
    const points = (line) => line.map((value, step) => [step + 0.5, value]);
    if (panel.zero) {
      plot.add('line', { class: 'zero', x1: LEFT, x2: width - RIGHT, y1: plot.y(0), y2: plot.y(0) });
      const wide = Math.max((width - LEFT - RIGHT) / episode.steps - 1, 0.6);
      values.forEach((value, step) => {
        const [top, foot] = [plot.y(Math.max(value, 0)), plot.y(Math.min(value, 0))];
        const x = plot.x(step + 0.5) - wide / 2;
        plot.add('rect', { class: `bar ${value < 0 ? 'below' : 'above'}`, x, y: top, width: wide, height: foot - top });
      });
    } else if (panel.floor) {
      plot.band(values.map((value, step) => [step + 0.5, 0, value]), 'c0');
      plot.line(points(values), 'c0 thin');
    } else {
      if (episode.lines[panel.with]) plot.line(points(episode.lines[panel.with]), 'ideal');
      plot.line(points(values), 'c0');
      this.#marks(plot, values);
    }
    plot.text(panel.name, LEFT, 12, 'start', 'name');
    if (episode.lines[panel.with]) {
      plot.add('line', { class: 'line ideal', x1: LEFT + 58, x2: LEFT + 80, y1: 8, y2: 8 });
      plot.text(panel.withName, LEFT + 85, 12);
    }
    if (panel.line === 'value' && this.episode.drop && width > 520) {
      plot.add('line', { class: 'line drop', x1: LEFT + 225, x2: LEFT + 243, y1: 8, y2: 8 });
      plot.text('largest drop', LEFT + 252, 12);
    }
    this.#readings.push({ node: plot.text('', width - RIGHT, 12, 'end', 'reading'), values });
    this.#cursor(plot);
    return plot.root;
  }

  #marks(plot, values) {
    const { drop, failureStep } = this.episode;
    if (drop && drop.by > 0) {
      const title = `largest drop of V: ${decimal(drop.by)} at step ${drop.step}`;
      const ends = [drop.step, drop.step + 1].map((step) => [step + 0.5, values[step]]);
      plot.line(ends, 'drop').append(svg('title', {}, title));
    }
    if (failureStep != null) {
      const x = plot.x(failureStep + 0.5);
      plot.add('line', { class: 'failed', x1: x, x2: x, y1: 20, y2: plot.height });
      const right = x < plot.width - 120;
      plot.text('went wrong', x + (right ? 4 : -4), 30, right ? 'start' : 'end', 'note failed');
    }
  }

  #seconds(width) {
    const seconds = this.episode.steps / this.episode.fps;
    const plot = this.#plot(width, 22, { domain: [0, 1], ticks: [] }, 'Seconds', 0);
    for (const tick of ticks(0, seconds, Math.max(2, width / 110))) {
      const x = plot.x(tick * this.episode.fps);
      plot.add('line', { class: 'tick', x1: x, x2: x, y1: 0, y2: 4 });
      plot.text(`${tick} s`, x, 16, x > width - 30 ? 'end' : 'middle');
    }
    return plot.root;
  }
}
