// Sign-in, and the making of the first admin with the link that the first start printed.
import { h, fill, field, showFaults } from './dom.js';
import { t } from './text.js';
import { get, post } from './api.js';

// signIn shows the form until somebody is signed in.
export function signIn(token) {
  return new Promise((done) => {
    const first = token !== undefined;
    document.title = `${t(first ? 'first' : 'sign.in')} · Kansa`;
    const name = h('input', { autocomplete: 'username', required: true, autofocus: true, maxlength: 64, spellcheck: 'false', autocapitalize: 'none' });
    const password = h('input', { type: 'password', autocomplete: first ? 'new-password' : 'current-password', required: true, maxlength: 1024 });
    const again = h('input', { type: 'password', autocomplete: 'new-password', required: true, maxlength: 1024 });
    const button = h('button', { class: 'primary', type: 'submit' }, t(first ? 'first.do' : 'sign.in'));
    const box = h('div', {});
    const other = h('div', {});
    const form = h('form', { novalidate: true, onsubmit: async (ev) => {
      ev.preventDefault();
      const faults = [];
      if (!name.value.trim()) faults.push({ field: 'name', text: t('sign.name.empty') });
      if (!password.value) faults.push({ field: 'password', text: t('sign.password.empty') });
      else if (first && new TextEncoder().encode(password.value).length < 12) faults.push({ field: 'password', text: t('first.password.short') });
      else if (first && password.value !== again.value) faults.push({ field: 'again', text: t('first.password.differs') });
      if (faults.length) return showFaults(form, box, { faults });
      button.disabled = true;
      try {
        const body = { name: name.value.trim(), password: password.value };
        done(await post(first ? '/api/v1/first' : '/api/v1/session', first ? { token, ...body } : body));
      } catch (err) {
        if (err.status === 401) err.faults = [{ text: t(first ? 'first.refused' : 'sign.refused') }];
        if (err.status === 429) err.faults = [{ text: t('sign.wait') }];
        showFaults(form, box, err);
        if (!first) password.select();
      } finally {
        button.disabled = false;
      }
    } },
    box, field('name', t('sign.name'), name, first && t('first.name.hint')), field('password', t('sign.password'), password, first && t('first.password.hint')),
    first && field('again', t('first.again'), again), button, other);
    fill(document.body, h('main', { class: 'sign' },
      h('img', { src: new URL('icon.svg', import.meta.url).pathname, alt: '', width: 44, height: 44 }),
      h('h1', {}, first ? t('first') : 'Kansa'), h('p', { class: 'muted' }, t(first ? 'first.hint' : 'sign.hint')),
      first && !token ? h('div', { class: 'note error', role: 'alert' }, t('first.no.token')) : form));
    name.focus();
    if (first) return;
    // How a sign-in at the provider ended stands in the address.
    const ended = { refused: 'sign.openid.refused', failed: 'sign.openid.failed' }[new URLSearchParams(location.search).get('sign-in')];
    if (ended) {
      showFaults(form, box, { faults: [{ text: t(ended) }] });
      history.replaceState(null, '', location.pathname);
    }
    get('/api/v1/session/ways').then((ways) => ways.openid && fill(other, h('a', { class: 'button', href: '/api/v1/session/openid' }, t('sign.openid', { title: ways.openid }))), () => {});
  });
}
