// Whether the critics can be trusted: verdict, checks, and the charts of one round.

import { byId, decimal, html, percent, segments } from './dom.js';
import { calibration, effectiveShare, histogram, key, ranking } from './charts.js';

export const SIGN = {
  'nothing warns': ['ok', '✓'],
  'with caution': ['care', '!'],
  'do not trust': ['bad', '✕'],
  'too little to tell': ['open', '?'],
  'not judged': ['open', '–'],
};
const WORDS = {
  'nothing warns': 'Nothing warns against this critic',
  'with caution': 'Use this critic with caution',
  'do not trust': 'Do not trust this critic',
  'too little to tell': 'Too little to tell',
  'not judged': 'This critic was not judged',
};

export function sign(verdict) {
  const [kind, symbol] = SIGN[verdict];
  return html('span', { class: `sign ${kind}`, 'aria-hidden': 'true' }, symbol);
}

export function showHealth(run, limits) {
  const rounds = run.health;
  if (!rounds.length) return;
  byId('health').hidden = false;
  showRanking(run);
  byId('effective-figure').hidden = rounds.every((round) => round.effective_share == null);
  effectiveShare(byId('effective'), rounds, limits.effective_share);
  const choices = rounds.map((round) => [round.round, String(round.round)]);
  segments(byId('of-round'), choices, (index) => showRound(rounds, index), rounds.at(-1).round);
}

function showRound(rounds, index) {
  const round = rounds.find((one) => one.round === index);
  byId('verdict').className = `verdict ${SIGN[round.verdict][0]}`;
  byId('verdict').replaceChildren(sign(round.verdict),
    html('div', {}, html('strong', {}, WORDS[round.verdict]), html('p', {}, round.said)));
  byId('checks').replaceChildren(...round.checks.map(checkItem));
  byId('clues').replaceChildren(...(round.clues ?? []).map((clue) =>
    html('li', {}, html('strong', {}, `${clue.title}. `), clue.said)));
  byId('calibration-figure').hidden = !round.deciles;
  if (round.deciles) {
    segments(byId('calibrated'), [['value', 'V, of states'], ['chunk', 'Q, of executed chunks']],
      (which) => calibration(byId('calibration'), rounds, index, which));
  }
  const notes = (text) => Object.fromEntries(round.sources.map((of) => [of.source, text(of)]));
  histogram(byId('advantages'), round.histograms.advantage, 'advantage',
    notes((of) => `${of.windows} windows, mean ${decimal(of.advantage)}`));
  histogram(byId('weights'), round.histograms.weight, 'weight',
    notes((of) => `${percent(of.weight_share)} of the weight, on ${of.weighted} of ${of.windows} windows`));
}

function checkItem(check) {
  const [kind, symbol] = check.warning ? ['care', '!'] : check.known ? ['ok', '✓'] : ['open', '?'];
  const spoken = check.warning ? 'warns' : check.known ? 'passes' : 'unknown';
  return html('li', { class: kind },
    html('span', { class: `sign ${kind}`, role: 'img', 'aria-label': spoken }, symbol),
    html('div', {},
      html('p', { class: 'check' }, html('strong', {}, check.title), html('span', { class: 'figure' }, check.value)),
      html('p', { class: 'hint' }, `${check.question} Healthy: ${check.healthy}.`),
      check.warning ? html('p', { class: 'warning' }, `${check.warning}.`) : null));
}

function showRanking(run) {
  byId('ranking-figure').hidden = !run.ranking;
  byId('no-ranking').hidden = Boolean(run.ranking) || run.offline;
  if (!run.ranking) return;
  const estimators = Object.entries(run.ranking.estimators);
  key(byId('ranking-key'), estimators.map(([name, against]) => `${name} (Spearman ${decimal(against.return.spearman)})`));
  ranking(byId('ranking'), run.ranking);
}
