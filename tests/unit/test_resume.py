"""Which overrides a continued run takes from its checkpoint."""

import pytest

from tautnet.resume import carried_over


@pytest.mark.parametrize(
    "override",
    [
        "callbacks=ema",
        "callbacks=[ics,ema]",
        "callbacks=[ema, spectrum]",
        "callbacks=variance",
        "callbacks=alternate",
        "callbacks.ema.decay=0.9",
        "callbacks.release.num_epochs=3",
        "norm.weight.taylor_order=2",
        "regularizer=orthonormality",
    ],
)
def test_what_training_depends_on_is_taken_over(override):
    assert carried_over(override)


@pytest.mark.parametrize(
    "override",
    [
        "callbacks=ics",
        "callbacks=[ics,spectrum]",
        "callbacks=[ics,schema]",
        "callbacks.ics.every_n_steps=1",
        "callbacks.ema._target_=os.system",
        "callbacks.ema.decay=${oc.env:HOME}",
        "callbacks=[ema,${oc.env:HOME}]",
        "+callbacks.ema.x={_target_: os.system}",
        "norm.weight._target_=os.system",
        "logger=csv",
        "run_dir=elsewhere",
    ],
)
def test_the_rest_and_what_a_hostile_file_might_say_is_not(override):
    assert not carried_over(override)
