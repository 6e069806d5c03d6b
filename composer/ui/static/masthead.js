// Name, the model's state, light or dark. value: {state, model, about}.
const state = element.querySelector('.state');
const light = element.querySelector('.light');

function render() {
  const value = props.value || {};
  state.className = 'state ' + (value.state || 'loading');
  element.querySelector('.model').textContent = value.model || '';
  element.querySelector('.about').textContent = value.about || '';
}

function name() {
  light.textContent = document.body.classList.contains('dark') ? 'Light' : 'Dark';
}

light.addEventListener('click', () => {
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('composer-light', dark ? 'dark' : 'light');
  name();
});
new MutationObserver(name).observe(document.body, {attributes: true, attributeFilter: ['class']});
name();
watch('value', render);
render();
