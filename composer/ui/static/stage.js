// The picture. value: {phase, src, alt, title, detail, fraction}. src null keeps what is shown.
const stage = element.querySelector('.stage');
const canvas = element.querySelector('.canvas');
const empty = element.querySelector('.empty');

function render() {
  const value = props.value || {phase: 'idle'};
  stage.dataset.phase = value.phase;
  if (value.src) {
    canvas.src = value.src;
    canvas.hidden = false;
  }
  canvas.alt = value.alt || '';
  empty.hidden = !canvas.hidden;
  element.querySelector('.invitation').textContent = value.invitation
    || 'Your picture appears here.';
  showProgress(element, value);
}

watch('value', render);
render();
