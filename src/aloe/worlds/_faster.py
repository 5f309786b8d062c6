"""What makes Meta-World cheaper.

The observation, the same to the last bit, at a quarter of the cost: of a simulator step of `peg-insert-side-v3` (0.65 ms),
physics takes a quarter and the observation nearly half, NumPy's `split` and `hstack` on a handful of numbers, and SciPy's
check that MuJoCo's rotation matrices are rotations.

Pictures, nearly the same, in two fifths of the time: the arm's meshes have 66,000 faces, and where Mesa draws on a CPU
these take most of the time of a picture of 64 px.
"""

import sys
import types
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.spatial.transform import Rotation

_FINE: Final = 2000
"""Meshes of more faces than this are drawn coarser: all parts of the arm (2,400 to 13,500 faces) and, in some of the 50
tasks, a thing that stands still (the base of a handle, the rim of a goal, the soccer goal); nothing that is moved."""
_FIELD_METRES: Final = 1.28
"""About the width of the table that a camera sees: over the size of a picture, what one pixel shows."""


def speed_up(sim: Any) -> None:
    """Replaces, in one Meta-World environment, how the present observation is put together."""
    data, right, left = sim.data, sim.data.body("rightclaw"), sim.data.body("leftclaw")
    hand = data.body("hand")

    def present() -> ndarray:
        """(18,): hand, gripper opening, then position and quaternion of up to two objects, padded with zeros."""
        seen = np.zeros(18)
        seen[:3] = hand.xpos
        seen[3] = min(max(np.linalg.norm(right.xpos - left.xpos) / 0.1, 0.0), 1.0)  # as Meta-World scales it
        positions, quaternions = sim._get_pos_objects(), sim._get_quat_objects()
        for i in range(len(positions) // 3):
            seen[4 + 7 * i : 7 + 7 * i] = positions[3 * i : 3 * i + 3]
            seen[7 + 7 * i : 11 + 7 * i] = quaternions[4 * i : 4 * i + 4]
        return seen

    sim._get_curr_obs_combined_no_goal = present
    module = sys.modules[type(sim).__module__]
    if hasattr(module, "Rotation"):
        module.Rotation = types.SimpleNamespace(from_matrix=_from_rotation_matrix)  # pyright: ignore


def _from_rotation_matrix(matrix: ndarray) -> Rotation:
    return Rotation.from_matrix(matrix, assume_valid=True)


def coarsen_meshes(model: Any, image_size: int) -> None:
    """Leaves out, for good, faces that a picture of that many pixels cannot show: vertices that lie within half a pixel of
    one another, on a grid, become one. Changes nothing but what is drawn; a second time changes nothing."""
    for i in np.flatnonzero(model.mesh_facenum > _FINE):
        faces = slice(model.mesh_faceadr[i], model.mesh_faceadr[i] + model.mesh_facenum[i])
        vertices = model.mesh_vert[model.mesh_vertadr[i] :][: model.mesh_vertnum[i]]
        corners, kept = _merged(vertices, model.mesh_face[faces], _FIELD_METRES / 2 / image_size)
        fewer = slice(faces.start, faces.start + len(kept))
        model.mesh_face[fewer] = corners[kept]
        for of_corners in (model.mesh_facenormal, model.mesh_facetexcoord):
            of_corners[fewer] = of_corners[faces][kept]
        model.mesh_facenum[i] = len(kept)


def _merged(
    vertices: Float[ndarray, "V 3"], faces: Int[ndarray, "F 3"], cell: float
) -> tuple[Int[ndarray, "F 3"], Int[ndarray, "K"]]:
    """The faces between the first vertex of each cell of a grid (m), and which of them are left: those with three corners,
    each once. Two that face away from each other are not one: MuJoCo draws a face from its front only."""
    _, first, cell_of = np.unique(np.floor(vertices / cell), axis=0, return_index=True, return_inverse=True)
    corners = first[cell_of.ravel()[faces]]
    lowest_first = (corners.argmin(1)[:, None] + np.arange(3)) % 3
    turned = np.take_along_axis(corners, lowest_first, 1)
    _, once = np.unique(turned, axis=0, return_index=True)
    flat = (turned[:, 0] == turned[:, 1]) | (turned[:, 1] == turned[:, 2]) | (turned[:, 2] == turned[:, 0])
    return corners, np.setdiff1d(once, np.flatnonzero(flat))
