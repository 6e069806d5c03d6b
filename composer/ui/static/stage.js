// The picture. value: {phase, src, alt, title, detail, fraction}. src null keeps what is shown.
const stage = element.querySelector('.stage');
const canvas = element.querySelector('.canvas');
const empty = element.querySelector('.empty');
const progress = element.querySelector('.progress');

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
  element.querySelector('.title').textContent = value.title || '';
  element.querySelector('.detail').textContent = value.detail || '';
  const known = typeof value.fraction === 'number';
  progress.classList.toggle('unknown', !known);
  progress.setAttribute('aria-valuenow', known ? Math.round(100 * value.fraction) : 0);
  progress.firstElementChild.style.width = known ? 100 * value.fraction + '%' : '';
}

watch('value', render);
render();
