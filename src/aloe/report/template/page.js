// Puts the page together from the data that stand in it.

import { byId, html, minutes, percent, segments, table, unknown, whole } from './dom.js';
import { key, learningCurve } from './charts.js';
import { showHealth, sign } from './health.js';
import { Browser } from './browser.js';

const data = JSON.parse(byId('data').textContent);
const { runs } = data;
const alone = runs.length === 1;

const interval = (row) =>
  row?.success == null ? unknown : `${percent(row.success_low)} to ${percent(row.success_high)}`;
const measured = (run) => run.rounds.filter((row) => row.success != null);
const lastJudged = (run) => run.health.filter((round) => round.verdict !== 'not judged').at(-1);
const verdictCell = (round) => (round ? html('span', {}, sign(round.verdict), round.verdict) : unknown);

/** Gives every run a label of its own. */
function label() {
  const usual = runs.map((run) => `${run.method}, seed ${run.seed}`);
  runs.forEach((run, i) => {
    const twice = usual.filter((one) => one === usual[i]).length > 1;
    run.label = twice ? `${usual[i]} (${run.name})` : usual[i];
  });
}

function showHead() {
  byId('title').textContent = alone ? runs[0].title : `${runs.length} runs compared`;
  if (alone) {
    byId('facts').append(...runs[0].facts.map(([term, words]) =>
      html('div', {}, html('dt', {}, term), html('dd', {}, words))));
  }
  const unfinished = runs.filter((run) => run.unfinished);
  byId('unfinished').hidden = !unfinished.length;
  byId('unfinished').textContent = unfinished
    .map((run) => (alone ? run.unfinished : `${run.label}: ${run.unfinished}`)).join(' ');
  byId('made').textContent = `Made by ALOE ${data.version} on ${data.made.replace('T', ' ')}.`;
}

function tile(name, figure, words, mark = null) {
  return html('div', { class: 'tile' },
    html('p', { class: 'hint' }, name),
    html('p', { class: 'figure' }, mark, figure),
    html('p', { class: 'hint' }, words));
}

function showSummary(run) {
  const tiles = [];
  const known = measured(run);
  if (known.length) {
    const [first, last] = [known[0], known.at(-1)];
    const before = last === first ? '' : `; version ${first.round} had ${percent(first.success)}`;
    tiles.push(tile(`success of version ${last.round}`, percent(last.success), `95 % interval ${interval(last)}${before}`));
  }
  const judged = lastJudged(run);
  if (judged) {
    const warn = judged.checks.filter((check) => check.warning).length;
    const words = `${warn} of ${judged.checks.length} checks warn, on ${judged.episodes} unseen episodes`;
    tiles.push(tile(`critic of round ${judged.round}`, judged.verdict, words, sign(judged.verdict)));
  }
  const counted = run.rounds.findLast((row) => row.takeovers != null);
  if (counted) {
    const words = `${counted.human_steps} of ${counted.env_steps} steps in ${counted.episodes} episodes`;
    tiles.push(tile('human', `${counted.takeovers} takeover${counted.takeovers === 1 ? '' : 's'}`, words));
  }
  if (run.rounds.length) {
    const count = run.rounds.length - (run.offline ? 1 : 0);  // offline the first policy costs nothing
    const words = `for ${count} round${count === 1 ? '' : 's'}${run.offline ? '' : ', the first policy included'}`;
    tiles.push(tile('time', minutes(run.rounds.at(-1).elapsed), words));
  }
  byId('summary').append(...tiles);
}

function showCurve() {
  if (!runs.some((run) => measured(run).length)) {
    const offline = runs.every((run) => run.offline);
    byId('curve').replaceChildren(html('p', { class: 'hint' }, offline
      ? 'Offline nothing is played, so no success is measured: let the old and the new checkpoint take turns on the robot.'
      : 'No success has been measured yet.'));
    byId('against').hidden = true;
    return;
  }
  if (!alone) key(byId('curve-key'), runs.map((run) => run.label));
  const names = { episodes: 'episodes in the store', human_steps: 'steps by the human' };
  segments(byId('against'), [['episodes', 'episodes'], ['human_steps', 'human steps']],
    (against) => learningCurve(byId('curve'), runs, against, names[against]));
}

function showRounds(run) {
  const health = Object.fromEntries(run.health.map((round) => [round.round, round]));
  const success = run.offline ? [] : ['success', '95 % interval', 'steps to success'];
  const heads = ['round', 'episodes', 'takeovers', 'human steps', ...success, 'critic', 'effective share', 'time so far'];
  byId('rounds-hint').hidden = run.offline;
  table(byId('rounds'), heads, run.rounds.map((row) => [
    row.complete ? row.round : `${row.round}, under way`,
    whole(row.episodes), whole(row.takeovers), whole(row.human_steps),
    ...(run.offline ? [] : [percent(row.success), interval(row), whole(row.steps_to_success)]),
    verdictCell(health[row.round]), percent(health[row.round]?.effective_share), minutes(row.elapsed),
  ]));
}

/** Success in every task, where one policy has several. */
function showTasks(run) {
  const known = run.rounds.filter((row) => row.by_task);
  byId('by-task').hidden = !known.length;
  if (!known.length) return;
  table(byId('tasks'), ['task', ...known.map((row) => `round ${row.round}`)], Object.keys(known[0].by_task).map((task) => [
    task, ...known.map((row) => row.by_task[task].join(' of ')),
  ]));
}

function showCompared() {
  byId('compared').hidden = false;
  byId('different').hidden = false;
  const heads = ['run', 'task', 'rounds', 'episodes', 'human steps', 'first success', 'last success', '95 % interval',
    'last critic', 'time'];
  table(byId('runs'), heads, runs.map((run) => {
    const known = measured(run);
    const last = run.rounds.at(-1);
    return [
      run.label, run.task, run.rounds.length, whole(last?.episodes), whole(last?.human_steps),
      percent(known[0]?.success), percent(known.at(-1)?.success), interval(known.at(-1)),
      verdictCell(lastJudged(run)), last ? minutes(last.elapsed) : unknown,
    ];
  }));
  if (!data.differences.length) {
    byId('differences').replaceWith(html('p', {}, 'Nothing that matters but the seed.'));
    return;
  }
  const shown = (value) => (value == null ? unknown : Array.isArray(value) ? value.join(', ') : String(value));
  table(byId('differences'), ['option', ...runs.map((run) => run.label)],
    data.differences.map(({ option, values }) => [html('code', {}, `--${option}`), ...values.map(shown)]));
}

function showEpisodes() {
  const { episodes, of, note } = data;
  if (!episodes.length) return;
  byId('selection').append(...(episodes.length === of ? [`All ${of} episodes.`] : [
    `${episodes.length} of ${of} episodes: half of them such as the critic has not learnt from, where there are any; `,
    'chosen in turn by the largest drop of V, by disagreement, by takeovers, by agreement, and the newest. ',
    html('code', {}, '--episodes N'), ' shows another number of them.',
  ]));
  byId('note').hidden = !note;
  byId('note').textContent = note ?? '';
  new Browser(byId('episodes'), episodes);
}

function themeButton() {
  const { dataset } = document.documentElement;
  const dark = () => (dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  const button = byId('theme');
  const name = () => { button.textContent = dark() ? 'Light' : 'Dark'; };
  button.addEventListener('click', () => { dataset.theme = dark() ? 'light' : 'dark'; name(); });
  name();
}

label();
themeButton();
showHead();
showCurve();
if (alone) {
  showSummary(runs[0]);
  showRounds(runs[0]);
  showTasks(runs[0]);
  showHealth(runs[0], data.limits);
  showEpisodes();
} else {
  showCompared();
}
