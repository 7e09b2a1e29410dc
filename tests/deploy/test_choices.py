"""Choices as columns are the members that they were made of."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqsat_deploy.choices import Choices, table
from eqsat_deploy.kernels import ENode, Step
from eqsat_deploy.language import binary, concat, unary

CLASSES = st.integers(0, 5)
ANCHORS = st.one_of(
    st.builds(lambda f, x: ENode(unary, (f, x)), st.sampled_from(["relu", "exp"]), CLASSES),
    st.builds(lambda a, b: ENode(binary, ("add", a, b), integer=a > b), CLASSES, CLASSES),
    st.builds(lambda *tensors: ENode(concat, concat.join(tensors, (1,))), CLASSES, CLASSES),
)
STEPS = st.lists(
    st.one_of(
        st.just(Step("relu")), st.builds(lambda c, side: Step("mul", c, side), CLASSES, st.integers(0, 1))
    ),
    max_size=3,
).map(tuple)
MEMBERS = st.lists(st.tuples(CLASSES, st.builds(lambda anchor, steps: anchor.then(steps), ANCHORS, STEPS)))


@given(MEMBERS)
def test_members_come_back_as_they_were(members: list[tuple[int, ENode]]) -> None:
    choices = Choices.of(members)
    assert list(choices) == members == choices[:]
    assert [choices[i] for i in range(len(choices))] == members
    assert choices == Choices.of(members)
    offsets, children = choices.children
    read = [tuple(children[a:b].tolist()) for a, b in pairwise(offsets)]
    assert read == [node.children for _, node in members]


@given(st.lists(ANCHORS, unique=True, min_size=1), st.lists(STEPS, unique=True, min_size=1), st.data())
def test_ordered_ones_come_once_and_read_what_others_compute(
    anchors: list[ENode], epilogues: list[tuple[Step, ...]], data: st.DataObject
) -> None:
    places = data.draw(
        st.lists(
            st.tuples(CLASSES, st.sampled_from(range(len(anchors))), st.sampled_from(range(len(epilogues))))
        )
    )
    expected = [(c, anchors[a].then(epilogues[e])) for c, a, e in sorted(set(places))]
    assert list(Choices.ordered(table(places), anchors, epilogues)) == [
        (c, n) for c, n in expected if c not in n.children
    ]


def test_other_members_are_other_choices() -> None:
    one, other = (Choices.of([(0, ENode(unary, ("relu", x)))]) for x in (1, 2))
    assert one != other
    assert one != [(0, ENode(unary, ("relu", 1)))]
    with pytest.raises(IndexError):
        one[1]
