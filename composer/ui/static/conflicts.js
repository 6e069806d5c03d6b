// What LoRAs do to each other. value: {status, advice, lines}: lines, each [what it is of, figures];
// null before anything was asked.
const box = element.querySelector('.conflicts');

function render() {
  const value = props.value;
  box.hidden = !value;
  const {status = '', advice = [], lines = []} = value || {};
  box.querySelector('.status').textContent = status;
  box.querySelector('.status').hidden = !status;
  box.querySelector('.advice').replaceChildren(...advice.map((text) => make('li', '', text)));
  box.querySelector('.figures').hidden = !lines.length;
  box.querySelector('dl').replaceChildren(
    ...lines.flatMap(([of, figures]) => [make('dt', '', of), make('dd', '', figures)]));
}

watch('value', render);
render();
