// All trainings, the newest first. value: {shown, rows: [{name, state, about, loras: [{title,
// role}], resumes, forgets}]}.
const list = element.querySelector('.rows');

function button(className, text, row, act) {
  const node = make('button', className, text);
  node.setAttribute('aria-label', text + ' ' + row.name);
  node.addEventListener('click', act);
  return node;
}

function forget(row) {
  let sure = false;
  const node = button('forget', 'Forget', row, () => {
    if (sure) { trigger('forget', {name: row.name}); return; }
    sure = true;
    node.textContent = 'Forget it?';
    node.classList.add('sure');
    setTimeout(() => {
      sure = false;
      node.textContent = 'Forget';
      node.classList.remove('sure');
    }, 4000);
  });
  node.title = row.state === 'finished' ? 'Its gates stay' : 'What it has learnt is deleted';
  return node;
}

function line(row, shown) {
  const node = make('div', 'row is-' + row.state);
  node.dataset.name = row.name;
  const open = make('button', 'open');
  open.setAttribute('aria-pressed', row.name === shown);
  const dots = make('span', 'dots');
  dots.append(...row.loras.map((lora) => {
    const dot = make('i', 'role-' + lora.role);
    dot.title = lora.title;
    return dot;
  }));
  const text = make('span', 'text');
  text.append(make('span', 'name', row.name), make('span', 'about', row.about));
  open.append(dots, text);
  open.addEventListener('click', () => trigger('show', {name: row.name}));
  node.append(open);
  if (row.resumes) node.append(button('resume', 'Continue', row, () => trigger('resume', {name: row.name})));
  if (row.forgets) node.append(forget(row));
  return node;
}

function render() {
  const value = props.value || {rows: []};
  element.querySelector('.trainings').hidden = !value.rows.length;
  element.querySelector('.sum').textContent = value.rows.length > 1 ? value.rows.length : '';
  list.replaceChildren(...value.rows.map((row) => line(row, value.shown)));
}

watch('value', render);
render();
