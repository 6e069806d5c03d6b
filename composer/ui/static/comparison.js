// The grid of a comparison, and a slider between any two of its pictures. value: {id,
// ways: [{title, detail, line, gated}], suggested: numbers of ways for the left and for the right, the
// best first, rows: what a picture has besides its way, in words, cells: [[src|null]] by way and row,
// scores: [[{loras: [{title, part|null, d}], bare|null}|null]] likewise, over, files: [{title,
// src, name}], standings: {scores, ways: [[number of the way, for each score [words]]], notes}}.
// Another id is another comparison; otherwise only what is new is drawn.
const $ = (selector) => element.querySelector(selector);
const whole = $('.comparison');
const grid = $('.grid');
const frame = $('.split');
const divider = $('.divider');
const room = 'composer:' + (props.room || '');
let shown = null;  // the id of the comparison that is drawn
let cells = [];  // buttons by way and row
let pair = [null, null];  // [way, row] on the left and on the right
let touched = false;  // the reader chose
let turn = 0;  // which side the next click fills
let at = 50;

const source = (place) => place && props.value.cells[place[0]][place[1]];
const same = (a, b) => a && b && a[0] === b[0] && a[1] === b[1];

function named(place) {
  const way = props.value.ways[place[0]];
  const several = props.value.ways.filter((other) => other.title === way.title).length > 1;
  return way.title + (several ? ': ' + way.detail : '');
}

function move(value) {
  at = Math.min(100, Math.max(0, value));
  frame.style.setProperty('--at', at + '%');
  divider.setAttribute('aria-valuenow', Math.round(at));
  divider.setAttribute('aria-valuetext', Math.round(at) + ' % of the left picture');
}

function choose(place) {
  if (same(place, pair[0]) || same(place, pair[1])) return;
  touched = true;
  pair[turn] = place;
  turn = 1 - turn;
  compare();
  if (!turn) $('.pair').scrollIntoView({block: 'nearest', behavior: 'smooth'});
}

// Until the reader chooses: what is suggested, or the first against the last.
function suggest() {
  if (touched) return;
  const {ways, cells: pictures, suggested: [lefts, rights]} = props.value;
  const there = ways.map((_, way) => way).filter((way) => pictures[way][0]);
  if (there.length < 2) { pair = there.length ? [[there[0], 0], null] : [null, null]; return; }
  const left = [...lefts, there[0]].find((way) => there.includes(way));
  const right = [...rights, there[there.length - 1], there[0]]
    .find((way) => there.includes(way) && way !== left);
  pair = [[left, 0], [right, 0]];
}

function compare() {
  const both = Boolean(source(pair[0]) && source(pair[1]));
  frame.classList.toggle('both', both);
  divider.hidden = !both;
  $('.wait').hidden = both;
  $('.swap').hidden = !both;
  [['before', 'left'], ['after', 'right']].forEach(([image, side], i) => {
    const place = pair[i];
    const src = source(place);
    const picture = $('.' + image);
    picture.hidden = !src;
    if (src && picture.getAttribute('src') !== src) picture.src = src;
    picture.alt = place ? named(place) + ', ' + props.value.rows[place[1]] : '';
    $('.tag-' + side).textContent = place ? named(place) : '';
    $('.tag-' + side).hidden = !src;
    const one = $('.one.' + side);
    one.hidden = !place;
    if (!place) return;
    one.querySelector('strong').textContent = props.value.ways[place[0]].title;
    one.querySelector('.detail').textContent = props.value.ways[place[0]].detail
      + ' · ' + props.value.rows[place[1]];
    one.querySelector('.scores').replaceChildren(...scored(props.value.scores[place[0]][place[1]]));
  });
  cells.forEach((column, way) => column.forEach((cell, row) => {
    const side = same([way, row], pair[0]) ? 'left' : same([way, row], pair[1]) ? 'right' : '';
    cell.dataset.side = side;
    cell.setAttribute('aria-pressed', Boolean(side));
  }));
}

function build(value) {
  shown = value.id;
  pair = [null, null];
  touched = false;
  turn = 0;
  grid.style.setProperty('--rows', Math.min(value.rows.length, 6));
  grid.dataset.rows = value.rows.length;
  grid.classList.toggle('varied', value.rows.some((row) => !/^seed \d+$/.test(row)));
  cells = value.ways.map((way, i) => value.rows.map((row, j) => {
    const cell = make('button', 'cell');
    cell.disabled = true;
    cell.title = row;
    cell.setAttribute('aria-label', way.title + ' (' + way.detail + '), ' + row);
    cell.append(make('img'));
    cell.firstChild.alt = '';
    cell.firstChild.hidden = true;
    cell.addEventListener('click', () => choose([i, j]));
    return cell;
  }));
  grid.replaceChildren(...value.ways.map((way, i) => {
    const column = make('section', 'way kind-' + way.line + (way.gated ? ' gated' : ''));
    const label = make('div', 'label');
    label.append(make('strong', '', way.title), make('span', 'detail', way.detail));
    const pictures = make('div', 'cells');
    pictures.append(...value.rows.map((row, j) => {
      const place = make('div', 'place');
      place.append(cells[i][j], make('span', 'row', row), make('div', 'scores'));
      return place;
    }));
    column.append(label, pictures);
    return column;
  }));
  move(50);
}

const percent = (part) => Math.round(100 * part) + ' %';

// Each LoRA with how well it recognises its hand, and how far the picture is from the bare model's.
function scored(scores) {
  if (!scores) return [];
  const found = scores.loras.map(({title, part, d}) => {
    const line = make('span', 'score');
    const known = part !== null;
    const words = known ? percent(part) : d > 0 ? 'D ' + d.toFixed(3) : 'not seen';
    line.title = known
      ? title + ' recognises its hand: ' + percent(part) + ' of what it does in its own picture'
      : title + ' recognises its hand by D = ' + d.toFixed(3) + ', where a picture of its own gives '
        + 'nothing to compare with';
    line.append(make('span', 'who', title), make('span', 'part', words));
    line.style.setProperty('--part', known ? Math.min(1, Math.max(0, part)) : 0);
    return line;
  });
  if (scores.bare) {
    const line = make('span', 'bare', 'unlike bare ' + percent(scores.bare / 255));
    line.title = 'The mean difference from the picture without LoRAs: '
      + scores.bare.toFixed(1) + ' of 255';
    found.push(line);
  }
  return found;
}

function showScores(value) {
  [...grid.children].forEach((column, i) => {
    column.querySelectorAll('.place .scores').forEach((node, j) => {
      if (value.scores[i][j] && !node.childElementCount) node.append(...scored(value.scores[i][j]));
    });
  });
}

// A row for each way, and for each score its mean, wins and difference to the weighted sum.
function showStandings({ways, standings: {scores, ways: rows, notes}}) {
  $('.standings').hidden = !rows.length;
  $('.standings thead tr').replaceChildren(...['Way', ...scores].map((name) => {
    const head = make('th', '', name);
    head.scope = 'col';
    return head;
  }));
  $('.standings tbody').replaceChildren(...rows.map(([way, cells]) => {
    const row = make('tr');
    const head = make('th');
    head.scope = 'row';
    head.append(make('span', 'name', ways[way].title), make('span', 'detail', ways[way].detail));
    row.append(head, ...cells.map((lines) => {
      const cell = make('td');
      cell.append(...lines.map((line) => make('span', '', line)));
      return cell;
    }));
    return row;
  }));
  $('.standings .notes').replaceChildren(...notes.map((note) => make('p', '', note)));
}

function render() {
  const value = props.value;
  $('.invitation').hidden = Boolean(value);
  $('.made').hidden = !value;
  if (!value) return;
  if (value.id !== shown) build(value);
  value.cells.forEach((column, i) => column.forEach((src, j) => {
    const cell = cells[i][j];
    cell.classList.toggle('lost', value.over && !src);
    if (!src || !cell.disabled) return;
    const image = cell.firstChild;
    image.onload = () => whole.style.setProperty('--ratio', image.naturalWidth / image.naturalHeight);
    image.src = src;
    image.hidden = false;
    cell.disabled = false;
    cell.classList.remove('painting');
  }));
  if (value.over) cells.flat().forEach((cell) => {
    if (cell.disabled) { cell.firstChild.hidden = true; cell.classList.remove('painting'); }
  });
  showScores(value);
  showStandings(value);
  $('.files').replaceChildren(...value.files.map(({title, src, name}) => {
    const link = make('a', 'file', title);
    link.href = src;
    link.download = name;
    link.setAttribute('aria-label', 'Download ' + title.toLowerCase());
    return link;
  }));
  $('.files').hidden = !value.files.length;
  suggest();
  compare();
}

document.addEventListener(room + 'previews', (event) => {
  if (!props.value || props.value.over) return;
  const {cells: made, previews} = event.detail;
  const now = made.map(([way, row]) => cells[way] && cells[way][row]);
  cells.flat().forEach((cell) => cell.classList.toggle('painting', cell.disabled && now.includes(cell)));
  now.forEach((cell, i) => {
    if (!cell || !cell.disabled || !previews[i]) return;
    cell.firstChild.src = previews[i];
    cell.firstChild.hidden = false;
  });
});

const toPointer = (event) => {
  const box = frame.getBoundingClientRect();
  move(100 * (event.clientX - box.left) / box.width);
};
frame.addEventListener('pointerdown', (event) => {
  if (divider.hidden || event.button) return;
  event.preventDefault();  // no drag of the picture itself
  touched = true;
  frame.setPointerCapture(event.pointerId);
  divider.focus({preventScroll: true});
  toPointer(event);
});
frame.addEventListener('pointermove', (event) => {
  if (frame.hasPointerCapture(event.pointerId)) toPointer(event);
});
divider.addEventListener('keydown', (event) => {
  const step = event.shiftKey ? 10 : 2;
  const to = {
    ArrowLeft: at - step, ArrowDown: at - step, ArrowRight: at + step, ArrowUp: at + step,
    PageDown: at - 20, PageUp: at + 20, Home: 0, End: 100,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  touched = true;
  move(to);
});
$('.swap').addEventListener('click', () => {
  touched = true;
  pair.reverse();
  compare();
});
watch('value', render);
move(50);
render();
