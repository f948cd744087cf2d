// Requests to the server, with the token that the page was opened with.

// Kept for reloads, bookmarks and other tabs, and out of the address, where a glance or a screenshot would tell it.
const given = new URLSearchParams(location.search).get("token");
if (given) {
  localStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}
export const token = localStorage.getItem("token");

export async function request(path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      body,
      headers: token ? { Authorization: `Bearer ${token}` } : {},
    });
  } catch {
    throw new Error(body instanceof File
      ? "it cannot be read any more, or the server does not answer"
      : "The server does not answer; trying again.");
  }
  const result = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw Object.assign(new Error(result.error ?? `the server answers ${answer.status}`), { status: answer.status });
  }
  return result;
}
