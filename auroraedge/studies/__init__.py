"""Studies of the inspection itself: does the model agree with people and with the truth, and does it still today?

`auroraedge study agreement` is an attribute agreement analysis after AIAG MSA, `auroraedge study challenge` the check
with golden parts at the start of a shift. `docs/studies.md` is the guide.
"""
