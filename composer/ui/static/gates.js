// Learned gates for what is in the mixer. value: {offers: [{id, name, title, names}], chosen: id|null}.
const box = element.querySelector('.gates');
const list = element.querySelector('.offers');
const chosen = element.querySelector('.chosen');
let inMixer = [];

function current() {
  const value = props.value || {offers: [], chosen: null};
  return value.chosen
    ? value.offers.find((offer) => offer.id === value.chosen) || {id: value.chosen, names: []}
    : null;
}

function fits(offer) {
  return offer.names.length === inMixer.length && offer.names.every((name) => inMixer.includes(name));
}

function button(offer, several) {
  const line = make('div', 'offer');
  const words = make('span', '', 'Learned gates know these LoRAs' + (several ? ': ' + offer.name : '.'));
  const use = make('button', 'use-gates', 'Use them');
  use.title = 'Let ' + offer.title + ' be fused by gates that were trained for them';
  use.addEventListener('click', () => trigger('choose', {id: offer.id}));
  line.append(words, use);
  return line;
}

function render() {
  const value = props.value || {offers: [], chosen: null};
  chosen.hidden = !value.chosen;
  const offers = value.chosen ? [] : value.offers.filter(fits).slice(0, 3);
  list.replaceChildren(...offers.map((offer) => button(offer, offers.length > 1)));
  box.hidden = !value.chosen && !offers.length;
}

function announce() {
  document.dispatchEvent(new CustomEvent('composer:gates', {detail: current()}));
}

element.querySelector('.back').addEventListener('click', () => trigger('leave'));
document.addEventListener('composer:use-gates', (event) => trigger('choose', {name: event.detail}));
document.addEventListener('composer:rows', (event) => { inMixer = event.detail; render(); });
document.addEventListener('composer:hello', announce);
watch('value', () => { render(); announce(); });
render();
announce();
document.dispatchEvent(new CustomEvent('composer:hello'));
