// Pictures made on the way, always of one prompt and seed. value: {prompt, pictures: [{step, src}]}.
const film = element.querySelector('.film');

function render() {
  const value = props.value || {pictures: []};
  element.querySelector('.previews').hidden = !value.pictures.length;
  element.querySelector('.sum').textContent = value.prompt ? '“' + value.prompt + '”' : '';
  element.querySelector('.sum').title = value.prompt || '';
  while (film.children.length > value.pictures.length) film.lastChild.remove();
  value.pictures.forEach((picture, i) => {
    let figure = film.children[i];
    if (!figure) {
      figure = make('figure');
      figure.append(make('img'), make('figcaption'));
      film.append(figure);
    }
    if (figure.firstChild.src !== picture.src) figure.firstChild.src = picture.src;
    figure.firstChild.alt = 'After step ' + picture.step;
    figure.lastChild.textContent = 'step ' + picture.step;
  });
}

watch('value', render);
render();
