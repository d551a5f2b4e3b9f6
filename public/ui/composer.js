/** The message field. */

import { $ } from './dom.js';

export function setUpComposer({ onSend, onTyping }) {
  const field = $('text');
  const fit = () => {
    field.style.setProperty('height', 'auto');
    field.style.setProperty('height', `${field.scrollHeight}px`);
    $('send').disabled = !field.value.trim();
  };
  const submit = () => {
    const text = field.value.trim();
    if (!text) return;
    field.value = '';
    fit();
    onTyping(false);
    onSend(text);
  };
  field.oninput = () => {
    fit();
    onTyping(field.value.trim() !== '');
  };
  field.onkeydown = (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  };
  $('composer').onsubmit = (event) => {
    event.preventDefault();
    submit();
    field.focus();
  };
  fit();
}
