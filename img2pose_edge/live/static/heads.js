// The heads in three dimensions: as a mask over the picture, and in the camera's frame.
// The camera frame (x right, y down, z forward) is turned to three.js's (y up, z backward) by FLIP.

import * as THREE from "./vendor/three.module.min.js";
import { colorOf, seen } from "./overlay.js";

const FLIP = new THREE.Matrix4().makeScale(1, -1, -1);
const HELPERS = 1; // layer that the mask does not show
const GAZE = 4; // face units; shows where a far head turns
const NEAR = 0.5, FAR = 2000; // face units

// Lines square by square: where there is no GPU, long ones that reach behind the eye are left out.
function floor(squares, side) {
  const points = [], at = (i) => (i - squares / 2) * side;
  for (let i = 0; i <= squares; i++) {
    for (let j = 0; j < squares; j++) {
      points.push(at(i), 0, at(j), at(i), 0, at(j + 1), at(j), 0, at(i), at(j + 1), 0, at(i));
    }
  }
  return new THREE.BufferGeometry().setAttribute("position", new THREE.Float32BufferAttribute(points, 3));
}

export class Heads {
  constructor(canvas, reference) {
    this.geometry = new THREE.BufferGeometry();
    this.geometry.setAttribute("position", new THREE.Float32BufferAttribute(reference.vertices, 3));
    this.geometry.setIndex(reference.triangles);
    this.geometry.computeVertexNormals();
    const nose = new THREE.Vector3(...reference.nose);
    this.gaze = new THREE.BufferGeometry().setFromPoints([nose, nose.clone().add(new THREE.Vector3(0, 0, -GAZE))]);
    this.metre = 1000 / reference.unit_mm;
    this.meshes = [];
    this.faces = [];
    this.scene = new THREE.Scene();
    const sky = new THREE.HemisphereLight(0xffffff, 0x46505c, 1.6), sun = new THREE.DirectionalLight(0xffffff, 2.2);
    sun.position.set(-0.35, 0.5, 0.79);
    for (const light of [sky, sun]) light.layers.enable(HELPERS);
    const faint = new THREE.LineBasicMaterial({ color: 0x5f6c7a, transparent: true, opacity: 0.35 });
    this.grid = new THREE.LineSegments(floor(40, this.metre / 2), faint);
    this.cone = new THREE.LineSegments(new THREE.BufferGeometry(), new THREE.LineBasicMaterial({ color: 0x8fa3b5 }));
    for (const helper of [this.grid, this.cone]) helper.layers.set(HELPERS);
    this.scene.add(sky, sun, this.grid, this.cone);

    const options = { alpha: true, antialias: true };
    this.mask = new THREE.WebGLRenderer(options);
    this.maskCamera = new THREE.Camera();
    this.space = new THREE.WebGLRenderer({ ...options, canvas });
    this.space.setPixelRatio(devicePixelRatio);
    this.eye = new THREE.PerspectiveCamera(40, 1, NEAR, FAR);
    this.eye.layers.enable(HELPERS);
    this.around = 0.9;
    this.above = 0.4;
    this.zoom = 0.85;
    this.center = new THREE.Vector3(0, 0, -8); // of the sphere that is in view
    this.radius = 0; // no face has been seen yet
    this.listen(canvas);
  }

  listen(canvas) {
    const turn = (x, y) => {
      this.around -= x / 150;
      this.above = Math.min(1.5, Math.max(-1.5, this.above + y / 150));
      this.draw();
    };
    const enlarge = (amount) => {
      this.zoom = Math.min(8, Math.max(0.1, this.zoom * Math.exp(-amount / 800)));
      this.draw();
    };
    const fingers = new Map(); // where each pointer that is down was last
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const now = [event.clientX, event.clientY];
      const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
      fingers.set(event.pointerId, now);
      if (!other) return turn(now[0] - last[0], now[1] - last[1]);
      const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
      enlarge(4 * (apart(now) - apart(last)));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      enlarge(-event.deltaY);
    }, { passive: false });
    const keys = {
      ArrowLeft: () => turn(-15, 0), ArrowRight: () => turn(15, 0), ArrowUp: () => turn(0, -15), ArrowDown: () => turn(0, 15),
      "+": () => enlarge(100), "=": () => enlarge(100), "-": () => enlarge(-100),
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // Place the heads that a message tells of.
  set({ faces, intrinsics, width, height }) {
    while (this.meshes.length < faces.length) {
      const mesh = new THREE.Mesh(this.geometry, new THREE.MeshStandardMaterial({ roughness: 0.55, side: THREE.DoubleSide }));
      mesh.matrixAutoUpdate = false;
      const gaze = new THREE.Line(this.gaze, new THREE.LineBasicMaterial());
      gaze.layers.set(HELPERS);
      mesh.add(gaze);
      this.scene.add(mesh);
      this.meshes.push(mesh);
    }
    this.faces = faces;
    this.meshes.forEach((mesh, i) => {
      mesh.visible = i < faces.length;
      if (!mesh.visible) return;
      for (const part of [mesh, mesh.children[0]]) part.material.color.set(colorOf(faces[i], i));
    });
    const [[fx, skew, cx], [, fy, cy]] = intrinsics;
    this.maskCamera.projectionMatrix.set(
      2 * fx / width, -2 * skew / width, 1 - 2 * cx / width, 0,
      0, 2 * fy / height, 2 * cy / height - 1, 0,
      0, 0, -(FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR),
      0, 0, -1, 0,
    );
    this.maskCamera.projectionMatrixInverse.copy(this.maskCamera.projectionMatrix).invert();

    const depth = 2;
    const corners = [[0, 0], [width, 0], [width, height], [0, height]].map(([u, v]) =>
      new THREE.Vector3((u - cx) / fx, -(v - cy) / fy, -1).multiplyScalar(depth));
    const origin = new THREE.Vector3();
    this.cone.geometry.setFromPoints(corners.flatMap((corner, i) => [origin, corner, corner, corners[(i + 1) % 4]]));
    if (faces.length) {
      const middles = faces.map(({ translation: [x, y, z] }) => new THREE.Vector3(x, -y, -z));
      const { center, radius } = new THREE.Box3().setFromPoints([origin, ...middles]).getBoundingSphere(new THREE.Sphere());
      const step = this.radius ? 0.1 : 1; // it follows slowly, to be easy on the eyes
      this.center.lerp(center, step);
      this.radius += step * (radius + 2 - this.radius);
      this.grid.position.set(this.center.x, Math.min(...middles.map((m) => m.y)) - 2.5, this.center.z);
    }
    this.draw();
  }

  place(poses) {
    poses.forEach(({ rotation: [a, b, c], translation: [x, y, z] }, i) => {
      this.meshes[i].matrix.set(...a, x, ...b, y, ...c, z, 0, 0, 0, 1).premultiply(FLIP);
      this.meshes[i].matrixWorldNeedsUpdate = true;
    });
  }

  // A canvas of the given size with the masks alone.
  drawMask(width, height) {
    this.place(this.faces.map(seen));
    this.mask.setSize(width, height, false);
    this.mask.render(this.scene, this.maskCamera);
    return this.mask.domElement;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.space.domElement;
    if (!width || !height) return;
    this.place(this.faces);
    this.space.setSize(width, height, false);
    this.eye.aspect = width / height;
    this.eye.updateProjectionMatrix();
    const distance = this.zoom * (this.radius || 8) / Math.sin(this.eye.fov * Math.PI / 360) / Math.min(1, this.eye.aspect);
    const flat = Math.cos(this.above);
    const from = new THREE.Vector3(Math.sin(this.around) * flat, Math.sin(this.above), Math.cos(this.around) * flat);
    this.eye.position.copy(this.center).addScaledVector(from, distance);
    this.eye.lookAt(this.center);
    this.space.render(this.scene, this.eye);
  }
}
