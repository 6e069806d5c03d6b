// What the components share; it stands before the script of each.
function make(tag, className, text) {
  const node = document.createElement(tag);
  if (tag === 'button') node.type = 'button';
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  return node;
}

// A LoRA to choose, with its picture or its initials.
function loraButton(kind, entry, chosen, title, choose) {
  const button = make('button', kind + ' role-' + entry.role);
  button.dataset.name = entry.name;
  button.title = title;
  button.setAttribute('aria-pressed', chosen);
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
  button.append(picture);
  button.addEventListener('click', choose);
  return button;
}

// Shows the buttons (one for each card, in order) whose card holds all the words, and says why none.
function filterLoras(buttons, cards, text, nothing, fits = () => true) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  buttons.forEach((node, i) => {
    node.hidden = !(words.every((word) => cards[i].haystack.includes(word)) && fits(cards[i]));
    shown += !node.hidden;
  });
  nothing.hidden = shown > 0;
  nothing.textContent = cards.length
    ? 'No LoRA fits this search.'
    : 'No LoRA found. Put .safetensors files into the LoRA folder, then press Refresh.';
}

function pressChosen(buttons, chosen) {
  buttons.forEach((node) => node.setAttribute('aria-pressed', chosen.has(node.dataset.name)));
}

// The files that cannot be used, in a fold.
function showProblems(fold, texts) {
  fold.hidden = !texts.length;
  const many = texts.length > 1 ? ' files' : ' file';
  fold.replaceChildren(
    make('summary', '', texts.length + many + ' cannot be used'),
    ...texts.map((text) => make('p', '', text)));
}

// A job's title, detail and bar; a bar without a number runs.
function showProgress(element, {title, detail, fraction}) {
  const progress = element.querySelector('.progress');
  element.querySelector('.title').textContent = title || '';
  element.querySelector('.detail').textContent = detail || '';
  const known = typeof fraction === 'number';
  progress.classList.toggle('unknown', !known);
  progress.setAttribute('aria-valuenow', known ? Math.round(100 * fraction) : 0);
  progress.firstElementChild.style.width = known ? 100 * fraction + '%' : '';
}
