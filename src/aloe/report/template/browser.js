// The list of episodes, and the one that is looked at.

import { byId, decimal, html, svg } from './dom.js';
import { extent } from './charts.js';
import { Player } from './player.js';
import { Timeline, ranges } from './timeline.js';

const SORTS = {
  drop: ['largest drop of V', (one) => one.drop?.by],
  disagreement: ['disagreement of critic and outcome', (one) => one.disagreement && Math.abs(one.disagreement)],
  takeovers: ['takeovers', (one) => one.takeovers.length],
  number: ['order of recording', (one, index) => -1 - index],
};
const RATES = [['0.25', '¼ speed'], ['0.5', '½ speed'], ['1', 'real time'], ['2', '2 × speed']];

function actor(one) {
  if (one.actors.some((part) => part.source === 'human')) return 'policy and human';
  return one.actors[0].source === 'demo' ? 'demonstration' : 'policy alone';
}

const SEEN = {
  'learnt from': 'has learnt from it',
  'perhaps learnt from': 'may have learnt from it',
  fresh: 'has not seen it',
  'held out': 'has not seen it',
  'not judged': 'has not judged it',
};
const FILTERS = {
  kind: ['critic', (one) => SEEN[one.kind]],
  actor: ['executed by', actor],
  outcome: ['outcome', (one) => one.outcome],
  round: ['recorded in', (one) => one.round == null ? 'elsewhere' : one.round ? `round ${one.round}` : 'round 0'],
  version: ['policy version', (one) => one.version == null ? 'none' : String(one.version)],
};

export class Browser {
  #chosen = Object.fromEntries(Object.keys(FILTERS).map((name) => [name, '']));
  #sort;
  #shown = [];
  #selected = null;
  #player = null;
  #rate = 0.5;
  #url = null;

  constructor(section, episodes) {
    this.episodes = episodes;
    this.ranges = ranges(episodes);
    section.hidden = false;
    const usable = Object.keys(SORTS).filter((name) => episodes.some((one, i) => SORTS[name][1](one, i)));
    [this.#sort] = usable;
    byId('filters').replaceChildren(
      this.#select('sort by', 'sort', usable.map((name) => [name, SORTS[name][0]]), (value) => { this.#sort = value; }),
      ...Object.entries(FILTERS).map(([name, [label, read]]) => {
        const values = [...new Set(episodes.map(read))].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
        const options = [['', 'all'], ...values.map((value) => [value, value])];
        const chosen = (value) => { this.#chosen[name] = value; };
        return values.length > 1 ? [this.#select(label, name, options, chosen)] : [];
      }).flat());
    section.addEventListener('keydown', (event) => this.#key(event));
    byId('list').addEventListener('click', (event) => {
      const item = event.target.closest('[role=option]');
      if (item) this.select(Number(item.dataset.episode));
    });
    this.#list();
  }

  #select(label, name, options, chosen) {
    const onchange = (event) => { chosen(event.target.value); this.#list(); };
    return html('label', {}, `${label} `,
      html('select', { name, onchange }, options.map(([value, words]) => html('option', { value }, words))));
  }

  #list() {
    const read = SORTS[this.#sort][1];
    const rank = (one) => read(one, this.episodes.indexOf(one)) ?? -Infinity;
    this.#shown = this.episodes
      .filter((one) => Object.entries(FILTERS)
        .every(([name, [, of]]) => !this.#chosen[name] || of(one) === this.#chosen[name]))
      .sort((a, b) => rank(b) - rank(a) || this.episodes.indexOf(a) - this.episodes.indexOf(b));
    const count = this.#shown.length;
    const none = 'No episode fits all of these filters.';
    byId('count').textContent = count ? `${count} of ${this.episodes.length} episodes` : none;
    byId('list').replaceChildren(...this.#shown.map((one) => this.#item(one)));
    if (count) this.select(this.episodes.indexOf(this.#shown[0]));
  }

  #item(one) {
    const index = this.episodes.indexOf(one);
    const words = [['fresh', 'held out'].includes(one.kind) ? 'unseen' : null,
      one.takeovers.length ? `${one.takeovers.length} takeover${one.takeovers.length > 1 ? 's' : ''}` : null,
      this.#measure(one)].filter(Boolean);
    return html('li', { role: 'option', id: `episode-${index}`, 'data-episode': index, 'aria-selected': 'false' },
      html('span', { class: `outcome ${one.outcome.replace(' ', '-')}`, role: 'img', 'aria-label': one.outcome },
        { success: '✓', failure: '✕', 'time out': '◷' }[one.outcome] ?? '?'),
      html('span', { class: 'name' }, one.title, html('small', {}, words.join(' · '))),
      this.#spark(one));
  }

  /** The number that the list is sorted by. */
  #measure(one) {
    if (this.#sort === 'disagreement' && one.disagreement != null) {
      return `V too ${one.disagreement > 0 ? 'high' : 'low'} by ${decimal(Math.abs(one.disagreement))}`;
    }
    return one.drop ? `drop ${decimal(one.drop.by)}` : null;
  }

  #spark(one) {
    const { value } = one.lines;
    if (!value) return null;
    const [low, high] = this.ranges.value;
    const x = (i) => ((i + 0.5) / value.length * 70).toFixed(1);
    const y = (v) => (24 - (v - low) / (high - low) * 22).toFixed(1);
    const points = value.map((v, i) => `${x(i)},${y(v)}`).join(' ');
    return svg('svg', { width: 70, height: 26, 'aria-hidden': 'true' }, svg('polyline', { class: 'line c0 thin', points }));
  }

  select(index) {
    const list = byId('list');
    list.querySelector('[aria-selected=true]')?.setAttribute('aria-selected', 'false');
    const item = byId(`episode-${index}`);
    item.setAttribute('aria-selected', 'true');
    list.setAttribute('aria-activedescendant', item.id);
    const foot = item.offsetTop + item.offsetHeight;
    if (item.offsetTop < list.scrollTop || foot > list.scrollTop + list.clientHeight) {
      list.scrollTop = item.offsetTop - list.clientHeight / 3;
    }
    if (this.#selected !== index) this.#show(index);
    this.#selected = index;
  }

  #show(index) {
    const one = this.episodes[index];
    this.#player?.pause();
    const video = this.#video(index, one);
    const play = html('button', { type: 'button', class: 'play', onclick: () => this.#player.toggle() });
    const where = html('output', { class: 'where' });
    const line = html('div', {
      class: 'timeline', role: 'slider', tabindex: 0,
      'aria-label': 'step', 'aria-valuemin': 0, 'aria-valuemax': one.steps - 1,
    });
    byId('detail').replaceChildren(
      html('h3', {}, one.title, html('small', {}, this.#about(one))),
      ...(video ? [this.#film(video, one.video)] : []),
      html('div', { class: 'transport' }, play, this.#rates(), where),
      line);
    const timeline = new Timeline(line, one, this.ranges, (step) => this.#seek(step));
    this.#player = new Player({
      video,
      steps: one.steps,
      fps: one.fps,
      every: one.video?.every,
      changed: ({ step, playing }) => {
        timeline.show(step);
        line.setAttribute('aria-valuenow', step);
        line.setAttribute('aria-valuetext', `step ${step} of ${one.steps}`);
        play.textContent = playing ? '❚❚ Pause' : '▶ Play';
        where.textContent = `step ${step} of ${one.steps} · ${(step / one.fps).toFixed(2)} s`;
      },
    });
    this.#player.rate = this.#rate;
    this.#player.seek(0);
  }

  #seek(step) {
    this.#player.pause();
    this.#player.seek(step);
  }

  #rates() {
    const onchange = (event) => { this.#rate = this.#player.rate = Number(event.target.value); };
    return html('select', { 'aria-label': 'speed', onchange },
      RATES.map(([value, words]) => html('option', { value, selected: Number(value) === this.#rate }, words)));
  }

  #film(video, { width, height, places }) {
    const percent = (part, all) => `${(100 * part) / all}%`;
    return html('div', { class: 'film', style: `--width: ${width}; --height: ${height}` }, video,
      places.map(([camera, x, y]) =>
        html('span', { class: 'camera', style: `left: ${percent(x, width)}; top: ${percent(y, height)}` }, camera)));
  }

  #about(one) {
    const rescued = one.outcome === 'success' && actor(one) === 'policy and human';
    const outcome = rescued ? 'success, with the human' : one.outcome;
    const seen = {
      fresh: `played without a human; the critic of round ${one.critic} has never seen it`,
      'held out': `held out: the critic of round ${one.critic} has never seen it`,
      'learnt from': `values by the critic of round ${one.critic}, which has learnt from it`,
      'perhaps learnt from': `values by the critic of round ${one.critic}, which may have learnt from it`,
      'not judged': 'no critic has judged it',
    }[one.kind];
    return [outcome === 'unknown' ? null : outcome, one.task, seen].filter(Boolean).join(' · ');
  }

  #video(index, one) {
    if (!one.video) return null;
    const bytes = Uint8Array.from(atob(byId(`video-${index}`).textContent), (letter) => letter.charCodeAt(0));
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(new Blob([bytes], { type: 'video/mp4' }));
    const onclick = () => this.#player.toggle();
    const video = html('video', { playsinline: true, preload: 'auto', 'aria-label': `video of ${one.title}`, onclick });
    video.muted = true;
    video.src = this.#url;
    return video;
  }

  #key(event) {
    if (event.target.closest('select, input') || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === ' ' && event.target.closest('button')) return;
    const far = event.shiftKey ? 10 : 1;
    const place = this.#shown.indexOf(this.episodes[this.#selected]);
    const other = (by) => this.#shown[place + by] && this.select(this.episodes.indexOf(this.#shown[place + by]));
    const actions = {
      ' ': () => this.#player.toggle(),
      ArrowLeft: () => this.#seek(this.#player.step - far),
      ArrowRight: () => this.#seek(this.#player.step + far),
      Home: () => this.#seek(0),
      End: () => this.#seek(this.#player.steps - 1),
      ArrowUp: () => other(-1),
      ArrowDown: () => other(1),
    };
    if (!this.#player || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}
