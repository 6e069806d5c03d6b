// How far a comparison is. value: {phase, title, detail, fraction, cells, previews}: cells, each
// [way, seed], are those being made; the grid shows their previews in their places.
const pace = element.querySelector('.pace');
let last = 'idle';
const room = 'composer:' + (props.room || '');

function render() {
  const value = props.value || {phase: 'idle'};
  pace.dataset.phase = value.phase;
  pace.hidden = value.phase === 'idle';
  // on a phone the pictures are far below the button
  if (value.phase === 'starting' && last !== 'starting' && pace.getBoundingClientRect().top > innerHeight) {
    pace.scrollIntoView({block: 'start', behavior: 'smooth'});
  }
  last = value.phase;
  showProgress(element, value);
  if (value.cells) {
    document.dispatchEvent(new CustomEvent(room + 'previews', {detail: value}));
  }
}

watch('value', render);
render();
