// A full prompt from the words in the box. value: {phase, note, typed, made, seed, loras}: what was
// typed before, what the model made of it, by which seed and for which LoRAs; Back needs them.
const box = element.querySelector('.expander');
const expand = element.querySelector('.expand');
const back = element.querySelector('.back');
const note = element.querySelector('.note');

function show(phase, value) {
  const busy = phase === 'working';
  box.dataset.phase = phase;
  expand.disabled = busy || phase === 'off';
  expand.title = phase === 'off' ? value.note : 'Let a small language model make a full prompt of these words; all of them stay, and so do trigger words';
  element.querySelector('.label').textContent = busy ? 'Writing…' : phase === 'done' ? 'Another' : 'Expand prompt';
  back.hidden = phase !== 'done';
  note.textContent = value.note || '';
  // what is typed while the model writes would be lost
  const words = document.querySelector('#prompt textarea');
  if (words) words.readOnly = busy;
}

function render() {
  const value = props.value || {phase: 'idle'};
  show(value.phase, value);
}

expand.addEventListener('click', () => {
  show('working', {});
  trigger('expand');
});
back.addEventListener('click', () => {
  trigger('back');
  document.querySelector('#prompt textarea')?.focus();
});
back.title = 'Put back what was typed';
watch('value', render);
render();
