// Boxes and axes on the picture, in pixels of the image that the poses refer to.

const AXES = [[[1, 0, 0], "#f04c4c"], [[0, 1, 0], "#4bc84b"], [[0, 0, -1], "#3d8bff"]];
const AXIS_LENGTH = 0.6; // face units

const COLORS = ["#5cc8ff", "#ffb454", "#7fdc7a", "#ff7fb0", "#b79cff", "#ffe066", "#5ee0c8", "#ff8f6b"];

export function colorOf(face, index) {
  return COLORS[(face.id ?? index) % COLORS.length];
}

// The pose to draw a face by: of a calibrated camera another than its pose in space, as lenses distort.
export const seen = (face) => face.seen ?? face;

// A point of the face frame to a pixel.
function project([x, y, z], face, camera) {
  const { rotation, translation } = seen(face);
  const [X, Y, Z] = rotation.map((r, i) => r[0] * x + r[1] * y + r[2] * z + translation[i]);
  return { x: (camera[0][0] * X + camera[0][1] * Y) / Z + camera[0][2], y: (camera[1][1] * Y) / Z + camera[1][2], Z };
}

export function drawBox(context, face, color, unit) {
  const [x1, y1, x2, y2] = face.box;
  context.lineWidth = 2 * unit;
  context.strokeStyle = color;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  if (x2 - x1 < 24 * unit) return;
  const text = (face.id === undefined ? "" : `#${face.id}  `) + face.score.toFixed(2);
  context.font = `${13 * unit}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 8 * unit;
  const bottom = Math.max(y1, 18 * unit); // within the picture
  context.fillStyle = color;
  context.fillRect(x1 - unit, bottom - 18 * unit, width, 18 * unit);
  context.fillStyle = "#0b0f14";
  context.fillText(text, x1 + 3 * unit, bottom - 5 * unit);
}

// At the nose: red to image-right of a frontal face, green down, blue out of the face.
export function drawAxes(context, face, camera, nose, unit) {
  const origin = project(nose, face, camera);
  const ends = AXES.map(([axis, color]) => {
    const tip = nose.map((v, i) => v + AXIS_LENGTH * axis[i]);
    return { ...project(tip, face, camera), color };
  });
  ends.sort((a, b) => b.Z - a.Z);
  context.lineWidth = 3 * unit;
  context.lineCap = "round";
  for (const end of ends) {
    context.strokeStyle = end.color;
    context.beginPath();
    context.moveTo(origin.x, origin.y);
    context.lineTo(end.x, end.y);
    context.stroke();
  }
}
