"""What a step asks a GPU's host to launch: no part grows by more than a fifth unseen."""
from benchmarks.launches import count

# In fp32; python -m benchmarks.launches shows bf16, whose casts are launches too.
KNOWN = {"forward": 260, "backward": 242, "memories": 94, "images": 31, "swap": 20, "losses": 14, "rest": 6,
         "running means": 5}


def test_no_part_of_a_step_launches_more_than_before():
    found = count(steps=1, words=["SAMPLER.CLUSTERS", "1", "PRECISION", "fp32"])     # bf16 on a CPU takes long
    assert found.keys() == KNOWN.keys()
    assert {part: number for part, number in found.items() if number > 1.2 * KNOWN[part]} == {}
