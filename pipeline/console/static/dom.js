// What every page is made of: elements, menus, dialogs, notes. Text goes in as text, never as HTML.
import { t } from './text.js';

// h makes an element. Properties that begin with "on" are listeners; undefined, null and false leave one out.
export function h(tag, props, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) e.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked' || name === 'indeterminate') e[name] = value;
    else e.setAttribute(name, value === true ? '' : value);
  }
  add(e, children);
  return e;
}

export function add(e, children) {
  for (const c of children.flat(Infinity)) {
    if (c !== undefined && c !== null && c !== false) e.append(c);
  }
}

export function fill(e, ...children) {
  e.replaceChildren();
  add(e, children);
  return e;
}

let count = 0;
export const unique = (name) => `${name}-${++count}`;

// field is a labelled control with room for what is wrong with it.
export function field(name, label, control, hint) {
  control.id = control.id || unique('f');
  control.setAttribute('name', name);
  const hintID = hint && unique('hint');
  if (hint) control.setAttribute('aria-describedby', hintID);
  return h('div', { class: 'field', 'data-field': name },
    h('label', { for: control.id }, label), control,
    hint && h('p', { class: 'hint', id: hintID }, hint));
}

export function check(name, label, checked, props) {
  const id = unique('c');
  return h('span', { class: 'check' }, h('input', { type: 'checkbox', id, name, checked, ...props }), h('label', { for: id }, label));
}

// menu is a button that opens a panel below it. Escape and a click elsewhere close it.
export function menu(label, panel, props) {
  const d = h('details', { class: 'menu', ...props }, h('summary', { class: 'button', 'aria-haspopup': 'true' }, label), h('div', { class: 'panel' }, panel));
  d.addEventListener('keydown', (ev) => {
    if (ev.key === 'Escape' && d.open) {
      d.open = false;
      d.querySelector('summary').focus();
      ev.stopPropagation();
    }
  });
  return d;
}

document.addEventListener('click', (ev) => {
  for (const d of document.querySelectorAll('details.menu[open]')) {
    if (!d.contains(ev.target)) d.open = false;
  }
});

// dialog shows a form and is done when it is closed. submit may throw: what it throws is shown, and the dialog stays.
export function dialog(title, body, { action, danger, submit } = {}) {
  return new Promise((done) => {
    const note = h('div', { role: 'alert' });
    const go = h('button', { class: danger ? 'danger' : 'primary', type: 'submit' }, action);
    const form = h('form', { novalidate: true, onsubmit: async (ev) => {
      ev.preventDefault();
      go.disabled = true;
      try {
        const result = submit ? await submit(form) : true;
        d.result = result ?? true;
        d.close();
      } catch (err) {
        showFaults(form, note, err);
      } finally {
        go.disabled = false;
      }
    } },
    h('h2', {}, title), note, body,
    h('div', { class: 'actions' }, action && go, h('button', { type: 'button', onclick: () => d.close() }, action ? t('cancel') : t('close'))));
    const d = h('dialog', { onclose: () => { d.remove(); done(d.result); } }, form);
    document.body.append(d);
    d.showModal();
  });
}

export const confirm = (title, text, action) => dialog(title, h('p', {}, text), { action, danger: true });

// note is a message in the page; kind is error, ok or info.
export const note = (kind, ...text) => h('div', { class: `note ${kind}`, role: kind === 'error' ? 'alert' : 'status' }, ...text);

// toast says shortly that something was done.
export function toast(text, kind = 'ok') {
  let box = document.querySelector('#toasts');
  if (!box) {
    box = h('div', { id: 'toasts', 'aria-live': 'polite' });
    document.body.append(box);
  }
  const e = note(kind, text);
  box.append(e);
  while (box.children.length > 3) box.firstElementChild.remove();
  setTimeout(() => e.remove(), kind === 'error' ? 9000 : 4000);
}

// showFaults puts what is wrong beside the fields it is about, and the rest above the form.
export function showFaults(form, box, err) {
  for (const e of form.querySelectorAll('.fault')) e.remove();
  for (const e of form.querySelectorAll('[aria-invalid]')) e.removeAttribute('aria-invalid');
  fill(box);
  if (!err) return;
  const rest = [];
  let first;
  for (const f of err.faults ?? [{ text: err.message }]) {
    const place = f.field && [...form.querySelectorAll('[data-field]')].find((e) => fits(e.dataset.field, f.field));
    if (!place) {
      rest.push(f.text);
      continue;
    }
    const id = unique('fault');
    place.append(h('p', { class: 'fault', id }, f.text));
    const control = place.querySelector('input, select, textarea');
    control?.setAttribute('aria-invalid', 'true');
    control?.setAttribute('aria-errormessage', id);
    for (let d = place.closest('details'); d; d = d.parentElement.closest('details')) d.open = true;
    first ??= control;
  }
  if (rest.length || first) fill(box, note('error', rest.length ? rest.map((text) => h('p', {}, text)) : h('p', {}, t('form.faults'))));
  (first ?? box).scrollIntoView({ block: 'nearest' });
  first?.focus();
}

const fits = (field, name) => field === name || field.endsWith('.' + name) || name.endsWith('.' + field) || name.startsWith(field + '[') || name.endsWith('.' + field.split('.').pop());

export function copy(text) {
  return navigator.clipboard.writeText(text).then(() => toast(t('copied')), () => toast(t('copy.failed'), 'error'));
}

// save hands a text or a blob to the person as a file.
export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

export function badge(kind, text) {
  return h('span', { class: `badge ${kind}` }, text);
}

// every calls f now and then until the page is left. It does not while nobody looks.
export function every(seconds, signal, f) {
  let timer;
  const run = async () => {
    if (!document.hidden) await f();
    if (!signal.aborted) timer = setTimeout(run, (typeof seconds === 'function' ? seconds() : seconds) * 1000);
  };
  signal.addEventListener('abort', () => clearTimeout(timer));
  return run();
}

export function debounce(ms, f) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), ms);
  };
}
