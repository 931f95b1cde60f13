// What a change did, field by field.
import { h } from './dom.js';
import { t } from './text.js';

const isTree = (v) => v !== null && typeof v === 'object';

// flat is every value of a document by its path.
function flat(value, path = '', into = new Map()) {
  if (value === undefined) return into;
  if (!isTree(value) || Object.keys(value).length === 0) into.set(path, value);
  else for (const [k, v] of Object.entries(value)) flat(v, Array.isArray(value) ? `${path}[${k}]` : path ? `${path}.${k}` : k, into);
  return into;
}

const text = (v) => (typeof v === 'string' ? v : JSON.stringify(v));

export function changes(before, after) {
  const a = flat(before), b = flat(after);
  const paths = [...new Set([...a.keys(), ...b.keys()])];
  const rows = [];
  let same = 0;
  for (const p of paths) {
    const had = a.has(p), has = b.has(p);
    if (had && has && JSON.stringify(a.get(p)) === JSON.stringify(b.get(p))) {
      same++;
      continue;
    }
    rows.push(h('tr', { class: had && has ? 'changed' : had ? 'removed' : 'added' },
      h('th', { scope: 'row', class: 'code' }, p || '·'),
      h('td', {}, had ? h('del', {}, text(a.get(p))) : h('span', { class: 'muted' }, '–')),
      h('td', {}, has ? h('ins', {}, text(b.get(p))) : h('span', { class: 'muted' }, '–'))));
  }
  return h('div', {}, rows.length > 0 && h('div', { class: 'scroll' }, h('table', { class: 'diff' },
    h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, t('diff.field')), h('th', { scope: 'col' }, t('diff.before')), h('th', { scope: 'col' }, t('diff.after')))), h('tbody', {}, rows))),
  same > 0 && h('p', { class: 'hint' }, t('diff.same', { n: same })));
}
