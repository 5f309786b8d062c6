// Puts the page together from the data that stand in it.

import { byId, html, minutes, percent, segments, table, unknown, whole } from './dom.js';
import { key, learningCurve } from './charts.js';
import { showHealth, sign } from './health.js';
import { Browser } from './browser.js';

const data = JSON.parse(byId('data').textContent);
const { runs } = data;
const alone = runs.length === 1;

const interval = (row) => (row?.success == null ? unknown : `${percent(row.success_low)} to ${percent(row.success_high)}`);
const measured = (run) => run.rounds.filter((row) => row.success != null);
const judged = (run) => run.health.filter((round) => round.verdict !== 'no critic').at(-1);

function name(runs) {
  const counts = {};
  const labels = runs.map((run) => `${run.method}, seed ${run.seed}`);
  for (const label of labels) counts[label] = (counts[label] ?? 0) + 1;
  runs.forEach((run, i) => { run.label = counts[labels[i]] > 1 ? `${labels[i]} (${run.name})` : labels[i]; });
}

function showHead() {
  byId('title').textContent = alone ? runs[0].title : `${runs.length} runs compared`;
  if (alone) {
    byId('facts').append(...runs[0].facts.flatMap(([term, words]) => [html('div', {}, html('dt', {}, term), html('dd', {}, words))]));
  }
  const unfinished = runs.filter((run) => run.unfinished).map((run) => (alone ? '' : `${run.label}: `) + run.unfinished);
  byId('unfinished').hidden = !unfinished.length;
  byId('unfinished').textContent = unfinished.join(' ');
  byId('made').textContent = `Made by ALOE ${data.version} on ${data.made.replace('T', ' ')}.`;
}

function tile(label, figure, words, mark = null) {
  return html('div', { class: 'tile' }, html('p', { class: 'hint' }, label), html('p', { class: 'figure' }, mark, figure), html('p', { class: 'hint' }, words));
}

function showSummary([run]) {
  const known = measured(run);
  const [first, last] = [known[0], known.at(-1)];
  const verdict = judged(run);
  const latest = run.rounds.findLast((row) => row.takeovers != null);
  byId('summary').append(
    ...(last ? [tile(`success of version ${last.round}`, percent(last.success),
      `95 % interval ${interval(last)}${last === first ? '' : `; version ${first.round} had ${percent(first.success)}`}`)] : []),
    ...(verdict ? [tile(`critic of round ${verdict.round}`, verdict.verdict,
      `${verdict.checks.filter((check) => check.warning).length} of ${verdict.checks.length} checks warn, on ${verdict.episodes} unseen episodes`,
      sign(verdict.verdict))] : []),
    ...(latest ? [tile('human', `${latest.takeovers} takeovers`, `${latest.human_steps} of ${latest.env_steps} steps in ${latest.episodes} episodes`)] : []),
    ...(run.rounds.length ? [tile('time', minutes(run.rounds.at(-1).elapsed), `for ${run.rounds.length} rounds, the cloning included`)] : []));
}

function showCurve() {
  if (!runs.some((run) => measured(run).length)) {
    const why = runs.every((run) => run.offline) ? 'Offline nothing is played, so no success is measured.' : 'No success has been measured yet.';
    byId('curve').replaceChildren(html('p', { class: 'hint' }, why));
    byId('against').hidden = true;
    return;
  }
  if (!alone) key(byId('curve-key'), runs.map((run) => run.label));
  segments(byId('against'), [['episodes', 'episodes'], ['human_steps', 'human steps']],
    (against) => learningCurve(byId('curve'), runs, against, against === 'episodes' ? 'episodes in the store' : 'steps by the human'));
}

function showRounds([run]) {
  const health = Object.fromEntries(run.health.map((round) => [round.round, round]));
  const heads = ['round', 'episodes', 'takeovers', 'human steps', 'success', '95 % interval', 'steps to success', 'critic', 'effective share', 'time so far'];
  table(byId('rounds'), heads, run.rounds.map((row) => [
    row.complete ? row.round : `${row.round}, under way`, whole(row.episodes), whole(row.takeovers), whole(row.human_steps), percent(row.success),
    interval(row), whole(row.steps_to_success),
    health[row.round] ? html('span', {}, sign(health[row.round].verdict), health[row.round].verdict) : unknown,
    percent(health[row.round]?.effective_share), minutes(row.elapsed),
  ]));
}

function showCompared() {
  byId('compared').hidden = false;
  byId('rounds').closest('.wide').hidden = true;
  const heads = ['run', 'task', 'rounds', 'episodes', 'human steps', 'first success', 'last success', '95 % interval', 'last critic', 'time'];
  table(byId('runs'), heads, runs.map((run) => {
    const known = measured(run);
    const last = run.rounds.at(-1);
    const verdict = judged(run);
    return [
      run.label, run.task, run.rounds.length, whole(last?.episodes), whole(last?.human_steps), percent(known[0]?.success),
      percent(known.at(-1)?.success), interval(known.at(-1)),
      verdict ? html('span', {}, sign(verdict.verdict), verdict.verdict) : unknown, last ? minutes(last.elapsed) : unknown,
    ];
  }));
  byId('different').hidden = false;
  if (data.differences.length) {
    const shown = (value) => (value == null ? unknown : typeof value === 'number' ? String(value) : Array.isArray(value) ? value.join(', ') : String(value));
    table(byId('differences'), ['option', ...runs.map((run) => run.label)],
      data.differences.map(({ option, values }) => [html('code', {}, `--${option}`), ...values.map(shown)]));
  } else {
    byId('differences').replaceWith(html('p', {}, 'Nothing that matters but the seed.'));
  }
}

function showEpisodes() {
  const { episodes } = data;
  if (!episodes?.length) return;
  byId('selection').textContent = episodes.length === data.of
    ? `All ${data.of} episodes.`
    : `${episodes.length} of ${data.of} episodes: half of them such as the critic has not learnt from, where there are any; `
      + 'chosen in turn by the largest drop of V, by disagreement, by takeovers, by agreement, and the newest. --episodes N shows another number of them.';
  byId('note').hidden = !data.note;
  byId('note').textContent = data.note ?? '';
  new Browser(byId('episodes'), episodes);
}

function themeButton() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches);
  const button = byId('theme');
  const label = () => { button.textContent = dark() ? 'Light' : 'Dark'; };
  button.addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; label(); });
  label();
}

name(runs);
themeButton();
showHead();
showCurve();
if (alone) {
  showSummary(runs);
  showRounds(runs);
  showHealth(runs[0], data.limits);
  showEpisodes();
} else {
  showCompared();
}
