"""What the files of a run hold that the page is made from: compared before anything is drawn."""
from utils.structure import anything, either, flag, jsonable, listing, maybe, one_of, real, record, table, text, whole

SHARE = real(0, 1.000001)       # sums of fractions may end a last bit above 1
RANKS = {name: SHARE for name in ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")}
MODALITY = one_of("rgb", "ir")
PERSON = either(whole(-1, 10 ** 18), text)      # identities and cameras are whatever a data set calls them

NUMBERS = record(RANKS, {}, anything)
RESULT = record({"protocol": text, **RANKS}, {"checkpoint": text}, jsonable)
# metrics.json
METRICS = record(RANKS, {"protocol": text, "checkpoint": text, "results": listing(RESULT)}, anything)
# A line of metrics.jsonl.
ROW = record({"stage": text, "epoch": whole(1)}, {"test": RESULT}, maybe(either(real(), text, listing(real()))))

IMAGE = record({"image": text}, {"person": PERSON, "camera": PERSON, "path": text, "distance": real(), "right": flag},
               anything)
RANKED_LIST = record({"kind": text, "average_precision": SHARE, "query": IMAGE, "gallery": listing(IMAGE)}, {},
                     anything)
TEST = record({"protocol": text, "mode": text, "trial": whole(), "trials": whole(1), "numbers": NUMBERS,
               "query_modality": MODALITY, "queries": whole(), "gallery": whole(), "cmc": listing(SHARE),
               "lists": listing(RANKED_LIST)}, {}, anything)
MAP = record({"points": listing(listing(real(), 2)), "persons": listing(PERSON), "modalities": listing(MODALITY)}, {},
             anything)
COUNTS = record({"same": listing(whole()), "different": listing(whole())}, {}, anything)
DISTANCES = record({"edges": listing(real()), "rgb": COUNTS, "ir": COUNTS, "across": COUNTS}, {}, anything)
DATA = listing(record({"split": text, "modality": MODALITY, "persons": whole(), "images": whole(),
                       "cameras": table(whole())}, {}, anything))
# report_data/NAME.json, as `report.content` makes it.
CONTENT = record({"data": DATA, "tests": listing(TEST), "map": MAP, "distances": DISTANCES, "images": table(text)},
                 {"clusters": table(anything)}, anything)
