// Finished pictures, the newest first. value: {pictures: [{id, thumbnail, title}], selected}. One
// without a thumbnail cannot be read; its title says why.
const film = element.querySelector('.film');
const sum = element.querySelector('.sum');

function render() {
  const value = props.value || {pictures: [], selected: null};
  element.querySelector('.strip').hidden = value.pictures.length === 0;
  sum.textContent = value.pictures.length > 1 ? 'click one to see its settings' : '';
  film.replaceChildren(...value.pictures.map((picture) => {
    const button = make('button');
    button.title = picture.title;
    button.setAttribute('aria-pressed', picture.id === value.selected);
    if (picture.thumbnail) {
      const image = make('img');
      image.src = picture.thumbnail;
      image.alt = picture.title;
      button.append(image);
    } else {
      button.className = 'broken';
      button.textContent = 'Cannot be read';
      button.setAttribute('aria-label', picture.title);
    }
    button.addEventListener('click', () => {
      film.querySelectorAll('button').forEach((other) => other.setAttribute('aria-pressed', other === button));
      trigger('pick', {id: picture.id});
    });
    return button;
  }));
}

watch('value', render);
render();
