"""The model card's tables of attributes, from readings made by hand."""

import json

import numpy as np
from experiment_helpers import run_code

CODE = """
import json, numpy as np, evaluate_generator as e

e.FLAGS([""])

def row(input, restart, skin_read, glasses_read, met=1):
    # Two faces with glasses, of skin 0.1 and 0.9; none with facial hair.
    return {"input": input, "restart": restart, "met": met, "skin": (0.1, 0.9)[input],
        "skin read": skin_read, "glasses": "round", "glasses read": glasses_read,
        "facial_hair": "none", "facial_hair read": "none"}

rows = [row(0, 0, 0.2, "round"), row(0, 1, 0.3, "none"), row(0, 2, 0.5, "square", met=0)]
rows += [row(1, 0, 0.8, "none"), row(1, 1, 0.7, "none"), row(1, 2, 0.7, "none")]
groups = e.by_group(rows)
for row, smile in zip(rows, (-1, 0, 1, 1, 3, 3)):
    row |= {"hair_style read": "bun", "smile read": smile, "mouth_open read": row["input"]}
changed = [{"input": i, "attribute": name, "l2": l2[i]} for i in (0, 1) for name, l2 in {
    "glasses": (2e-4, 9e-4), "facial_hair": (0, 1), "hair_style": (1, 1), "smile": (1, 0),
    "mouth_open": (0, 0)}.items()]
variety = list(e.by_attribute_left_open(rows, changed))

e.faces.draw = lambda a, size: e.faces.jnp.full((size, size, 3), a.glasses / 10 + a.smile)
true = e.true_attributes(2)
inputs = np.stack([e.faces.draw(e.jax.tree.map(lambda leaf: leaf[i], true), 2) for i in (0, 1)])
drawn = {row["attribute"]: row["l2"] for row in e.change(lambda image: image, 2, inputs)}
pairs = ("glasses", 0), ("glasses", 2), ("hair_style", 9), ("smile", 0.5), ("smile", -0.25)
others = [float(e.other(name, np.float32(value))) for name, value in pairs]
print(json.dumps([groups, variety, int(true.glasses[1]), drawn, others]))
"""


def test_groups_of_faces_and_what_varies(tmp_path):
    result = run_code(CODE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    groups, variety, glasses, drawn, others = json.loads(result.stdout)
    lines = {line["faces"]: line for line in groups}
    assert lines.keys() == {"all", "dark skin", "light skin", "glasses", "no facial hair"}
    every = lines["all"]
    assert every["inputs"] == 2
    # Of one face all restarts, of the other half: 1.5 of 2 trials.
    assert every["success"].startswith("0.75 [")
    assert every["skin shift"].startswith("0.05 [")  # of 0.2 and −0.1
    assert every["truly glasses"] == "1" and every["glasses read off the truth"] == "0.5"
    assert every["glasses in results"].startswith("0.25 [0.0")  # Wilson's is above 0
    assert every["facial hair in results"].startswith("0 [0, 0.6")
    assert lines["dark skin"]["skin shift"] == "-0.1 [nan, nan]"

    differ = [line["inputs whose restarts differ"][:5] for line in variety]
    assert differ == ["0.5 [", "0 [0,", "0 [0,", "", ""]
    # Of two faces, deviations 1 / √2 and 0, and √2 between the true ones; then 0 of 1 / √2.
    spread = [line["spread"].partition(" ")[0] for line in variety]
    assert spread == ["", "", "", "0.25", "0"]
    shares = [line["left open"].partition(" ")[0] for line in variety]
    assert shares == ["1", "0.5", "0", "0.5", "1"]
    assert others == [1, 0, 0, -0.25, 0.5]  # smiles are from −0.5 to 1
    by_glasses = (0.1 * (glasses or 1)) ** 2
    np.testing.assert_allclose(list(drawn.values()), [by_glasses, 0, 0, 0.75**2, 0], rtol=1e-5)
