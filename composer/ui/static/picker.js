// The LoRAs at hand, small. value: {cards: [...], title}. A click tells the lessons, which keep the
// choice; on a page with a mixer, which names its room, it tells the mixer.
const faces = element.querySelector('.faces');
const search = element.querySelector('.search');
const nothing = element.querySelector('.nothing');
const MANY = 12;  // from so many on there is a search
const [teach, taught, who] = props.room
  ? ['toggle', 'rows', 'hello'].map((word) => 'composer:' + props.room + word)
  : ['composer:teach', 'composer:taught', 'composer:who'];
let chosen = new Set();

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  return node;
}

function face(entry) {
  const button = make('button', 'face role-' + entry.role);
  button.type = 'button';
  button.dataset.name = entry.name;
  button.title = entry.title + ' · ' + entry.role + (entry.trigger ? ' · “' + entry.trigger + '”' : '');
  button.setAttribute('aria-pressed', chosen.has(entry.name));
  const picture = make('span', 'picture');
  if (entry.thumbnail) {
    const image = make('img');
    image.src = entry.thumbnail;
    image.alt = '';
    image.loading = 'lazy';
    picture.append(image);
  } else {
    picture.append(make('span', 'initials', entry.title.slice(0, 2)));
  }
  picture.append(make('span', 'tick', '✓'));
  button.append(picture, make('span', 'name', entry.title));
  button.addEventListener('click', () => {
    document.dispatchEvent(new CustomEvent(teach, {detail: entry}));
  });
  return button;
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const cards = (props.value && props.value.cards) || [];
  let shown = 0;
  faces.querySelectorAll('.face').forEach((node, i) => {
    node.hidden = !words.every((word) => cards[i].haystack.includes(word));
    shown += !node.hidden;
  });
  nothing.hidden = shown > 0;
  nothing.textContent = cards.length
    ? 'No LoRA fits this search.'
    : 'No LoRA found. Put .safetensors files into the LoRA folder, then press Refresh.';
}

function render() {
  const cards = (props.value && props.value.cards) || [];
  if (props.value && props.value.title) element.querySelector('h2').textContent = props.value.title;
  faces.replaceChildren(...cards.map(face));
  search.hidden = cards.length < MANY;
  filter();
}

search.addEventListener('input', filter);
element.querySelector('.refresh').addEventListener('click', () => trigger('refresh'));
document.addEventListener(taught, (event) => {
  chosen = new Set(event.detail);
  faces.querySelectorAll('.face').forEach((node) => {
    node.setAttribute('aria-pressed', chosen.has(node.dataset.name));
  });
});
watch('value', render);
render();
document.dispatchEvent(new CustomEvent(who));
