// openapi.json, readable.

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

const api = await (await fetch("openapi.json")).json();
document.getElementById("description").textContent = api.info.description;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", operation.description));
    section.className = "panel operation controls";
    for (const parameter of operation.parameters ?? []) {
      section.append(element("p", "", element("code", `?${parameter.name}=`), ` ${parameter.description}`));
    }
    for (const [status, answer] of Object.entries(operation.responses)) {
      section.append(element("p", "", element("code", status), ` ${answer.description}`));
    }
    const code = operation["x-example"]?.replaceAll("ADDRESS", location.origin);
    if (code) section.append(element("pre", "", element("code", code)));
    document.getElementById("operations").append(section);
  }
}
