"""Laws of meta-training: it repeats itself to the bit, nothing leaks, the best look counts, and it learns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mil.adaptors.principal import Principal
from mil.bags import Bag, PackedBags
from mil.fewshot.alignment import alignment_loss
from mil.fewshot.components import principal_components
from mil.fewshot.episodes import EpisodeSampler, Shape
from mil.fewshot.learners import LastLayer
from mil.fewshot.methods import Method, Prototypes, Stepping, Support
from mil.fewshot.pool import Pool, pool_of
from mil.fewshot.recipe import KINDS, MetaRecipe
from mil.fewshot.training import _STEPS_TRIED, MetaTraining, TrainedLearner
from mil.heads import HEADS
from mil.metalearning import Slopes
from wsi.errors import MicrotomeError, UsageError

DIM = 6
QUICK = MetaRecipe(
    settings={"hidden": 5},
    ways=3,
    shots=(1, 2),
    queries=2,
    iterations=6,
    tasks_per_step=2,
    inner_steps=2,
    inner_rate=0.1,
    look_every=2,
    validation_tasks=4,
)


def make_pool(
    classes: Sequence[str], *, patients: int = 4, each: int = 3, rows: int = 1, sites: int = 2, seed: int = 0
) -> Pool:
    """Every patient has bags of every class; patients are of the sites in turn."""
    rng = np.random.default_rng([seed, len(classes)])
    centres = 2 * rng.normal(size=(len(classes), DIM))
    bags, where = [], []
    for patient in range(patients):
        for label in range(len(classes)):
            for number in range(each):
                features = (centres[label] + rng.normal(size=(rows, DIM))).astype(np.float32)
                name = f"p{patient}-c{label}-{number}"
                bags.append(Bag(name, features, np.zeros((rows, 2), np.int32), label, f"p{patient}"))
                where.append(f"site{patient % sites}")
    return pool_of(bags, classes=classes, sites=where)


BASE, VALIDATION = make_pool(["a", "b", "c", "d"]), make_pool(["e", "f", "g"], seed=1)


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user waits for minutes for takes a moment here: fine-tuning is of two steps, or of four."""
    monkeypatch.setattr("mil.fewshot.training._TUNED", ((2, 0.03), (4, 0.1)))
    monkeypatch.setattr("mil.fewshot.training._LOOK_STEPS", 2)


def train(
    kind: str, *, base: Pool = BASE, validation: Pool = VALIDATION, recipe: MetaRecipe = QUICK
) -> TrainedLearner:
    return MetaTraining(base, validation, recipe).train(KINDS[kind])


def weights(learner: TrainedLearner) -> dict[str, bytes]:
    state = {
        **learner.method.head.state_dict(),
        **{f"rate {k}": v for k, v in learner.method.log_rates.items()},
    }
    return {name: tensor.detach().numpy().tobytes() for name, tensor in state.items()}


# The same twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_recipe_gives_the_same_bytes_and_leaves_the_generator_alone(kind: str) -> None:
    torch.manual_seed(1)
    first = train(kind)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = train(kind)
    assert torch.equal(state, torch.get_rng_state())
    assert weights(first) == weights(second)
    assert (first.looks, first.accuracy) == (second.looks, second.accuracy)
    assert not first.method.head.training


def test_another_seed_gives_other_weights() -> None:
    assert weights(train("maml")) != weights(train("maml", recipe=replace(QUICK, seed=1)))


def test_what_was_trained_before_does_not_matter() -> None:
    training = MetaTraining(BASE, VALIDATION, QUICK)
    forth = {name: weights(training.train(KINDS[name])) for name in ("pretrained", "maml", "reptile")}
    again = MetaTraining(BASE, VALIDATION, QUICK)
    back = {name: weights(again.train(KINDS[name])) for name in ("reptile", "maml", "pretrained")}
    assert forth == back


def test_all_learners_see_features_along_the_axes_of_the_base_alone() -> None:
    found = principal_components(BASE.features, 3)
    for name in ("scratch", "maml"):
        method = train(name, recipe=replace(QUICK, components=3)).method
        assert isinstance(method.front, Principal)
        assert (method.front.dim, method.front.width, method.head.dim) == (BASE.dim, 3, 3)
        np.testing.assert_array_equal(method.front.mean.numpy(), found.mean)
        np.testing.assert_array_equal(method.front.axes.numpy(), found.axes)
        assert method.front.deviation.item() == found.deviation


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.is_trained])
def test_training_moves_every_part_that_counts(kind: str) -> None:
    begun = train("scratch").method.head
    moved = train(kind).method.head
    for name, parameter in moved.named_parameters():
        if not name.startswith("W."):  # the last layer is each task's own
            assert not torch.equal(parameter, dict(begun.named_parameters())[name]), name


# What a look decides -------------------------------------------------------------------------------------


def scripted(training: MetaTraining, accuracies: Sequence[float]) -> list[dict[str, bytes]]:
    """Have the looks say this, and after them always the last; gives back what was looked at."""
    seen: list[dict[str, bytes]] = []

    def look(method: Stepping) -> float:
        seen.append({name: p.detach().numpy().tobytes() for name, p in method.parameters.items()})
        return accuracies[min(len(seen), len(accuracies)) - 1]

    training._accuracy = look  # type: ignore[method-assign]
    return seen


def test_weights_are_those_of_the_best_look_and_not_of_the_last() -> None:
    training = MetaTraining(BASE, VALIDATION, replace(QUICK, iterations=10, look_every=1, patience=4))
    seen = scripted(training, [0.3, 0.5, 0.7, 0.7, 0.6, 0.7, 0.2])
    learner = training.train(KINDS["maml"])
    assert [look.step for look in learner.looks] == [1, 2, 3, 4, 5, 6, 7]  # four after the third, no better
    assert [look.best for look in learner.looks] == [True, True, True, False, False, False, False]
    kept = {name: p.detach().numpy().tobytes() for name, p in learner.method.head.named_parameters()}
    assert kept == seen[2]
    assert kept not in (seen[1], seen[3], seen[6])


def test_the_last_step_is_looked_at_even_between_looks() -> None:
    training = MetaTraining(BASE, VALIDATION, replace(QUICK, iterations=5, look_every=2))
    learner = training.train(KINDS["fomaml"])
    assert [look.step for look in learner.looks] == [2, 4, 5]


def test_steps_are_chosen_on_the_validation_tasks_and_the_first_of_equals_is_taken() -> None:
    training = MetaTraining(BASE, VALIDATION, QUICK)
    scripted(training, [0.5] * 3 + [0.5, 0.8, 0.8])  # three looks, then one, two and four times the steps
    learner = training.train(KINDS["maml"])
    assert (learner.method.steps, learner.accuracy) == (2 * QUICK.inner_steps, 0.8)
    training = MetaTraining(BASE, VALIDATION, QUICK)
    scripted(training, [0.1, 0.4])  # steps and rates
    scratch = training.train(KINDS["scratch"])
    assert scratch.looks == ()
    assert (scratch.method.steps, scratch.accuracy) == (4, 0.4)
    np.testing.assert_allclose([rate.exp() for rate in scratch.method.log_rates.values()], 0.1, rtol=1e-5)


def test_looking_changes_nothing() -> None:
    training = MetaTraining(BASE, VALIDATION, replace(QUICK, look_every=4, iterations=4))
    seen = scripted(training, [0.5])
    training.train(KINDS["maml"])
    again = MetaTraining(BASE, VALIDATION, replace(QUICK, look_every=1, iterations=4, patience=50))
    looked = scripted(again, [0.1, 0.2, 0.3, 0.4])
    again.train(KINDS["maml"])
    assert looked[3] == seen[0]
    assert len(looked) == 4 + len(_STEPS_TRIED)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.is_trained])
def test_validation_bags_enter_no_gradient(kind: str) -> None:
    """With one look, at the end, there is nothing that validation could decide but the steps to take."""
    recipe = replace(QUICK, iterations=4, look_every=4)
    other = make_pool(["x", "y", "z", "w"], seed=9)
    first, second = (train(kind, validation=pool, recipe=recipe) for pool in (VALIDATION, other))
    for name, parameter in first.method.head.named_parameters():
        assert torch.equal(parameter, dict(second.method.head.named_parameters())[name])


# Settings ------------------------------------------------------------------------------------------------


def test_rates_are_learnt_only_if_asked_for() -> None:
    fixed, learnt = (train("maml", recipe=replace(QUICK, learn_rates=on)) for on in (False, True))
    start = np.log(QUICK.inner_rate)
    assert all(abs(rate.item() - start) < 1e-6 for rate in fixed.method.log_rates.values())
    assert all(abs(rate.item() - start) > 1e-3 for rate in learnt.method.log_rates.values())


def test_an_alignment_of_weight_zero_is_none_and_another_counts() -> None:
    plain = weights(train("maml"))
    assert weights(train("maml", recipe=replace(QUICK, alignment=0.0))) == plain
    assert weights(train("maml", recipe=replace(QUICK, alignment=1.0))) != plain


@pytest.mark.parametrize("kind", ["fomaml", "pretrained"])
def test_alignment_draws_the_embeddings_of_a_class_at_two_sites_together(kind: str) -> None:
    shift = np.zeros((len(BASE), DIM), np.float32)
    shift[BASE.sites == 0, 0] = 4
    apart = copy.copy(BASE)
    object.__setattr__(apart, "features", BASE.features + shift)  # it is frozen

    def loss(learner: TrainedLearner) -> float:
        method = learner.method
        assert method.front
        features = method.front(apart.pack(np.arange(len(apart))))
        z = method.learner(3).embed(method.parameters, features)
        return float(alignment_loss(z, torch.from_numpy(apart.labels), torch.from_numpy(apart.sites)))

    recipe = replace(
        QUICK, settings={"hidden": 16}, iterations=30, look_every=30, outer_rate=0.01, shots=(1,)
    )
    without, with_it = (
        loss(train(kind, base=apart, recipe=replace(recipe, alignment=weight))) for weight in (0.0, 1.0)
    )
    assert with_it < 0.9 * without


def test_alignment_that_would_do_nothing_is_refused() -> None:
    recipe = replace(QUICK, alignment=1.0)
    with pytest.raises(UsageError, match="no class of those that are learnt from is at two sites"):
        MetaTraining(make_pool(["a", "b", "c"], sites=1), VALIDATION, recipe)
    with pytest.raises(UsageError, match="head 'max_instance' has no embedding"):
        MetaTraining(BASE, VALIDATION, replace(recipe, head="max_instance", kinds=("maml",)))


@pytest.mark.parametrize("kind", ["scratch", "maml", "anil", "reptile"])
def test_a_head_without_embeddings_learns_where_all_tasks_have_as_many_classes(kind: str) -> None:
    recipe = replace(QUICK, head="max_instance", kinds=(kind,))
    learner = train(kind, recipe=recipe)
    assert learner.method.last_layer is LastLayer.LEARNT
    assert learner.method.head.classes == 3


def test_a_head_without_embeddings_is_refused_where_it_cannot_be() -> None:
    assert not HEADS["additive_abmil"].embeds
    for kind in ("pretrained", "proto_maml"):
        with pytest.raises(UsageError, match=f"{kind} cannot be had with head 'additive_abmil'"):
            MetaTraining(BASE, VALIDATION, replace(QUICK, head="additive_abmil", kinds=("maml", kind)))
    recipe = replace(QUICK, head="additive_abmil", kinds=("maml",), ways=4)
    with pytest.raises(UsageError, match="tasks of 4 and of 3 classes") as refused:
        MetaTraining(BASE, VALIDATION, recipe)
    assert "--ways 3" in str(refused.value)


def test_settings_that_the_head_does_not_take_are_refused_before_anything_is_trained() -> None:
    state = torch.get_rng_state()
    with pytest.raises(UsageError, match="there is no 'width'"):
        MetaTraining(BASE, VALIDATION, replace(QUICK, settings={"width": 3}))
    MetaTraining(BASE, VALIDATION, QUICK)
    assert torch.equal(state, torch.get_rng_state())


def test_training_that_diverges_says_so() -> None:
    def outer(*arguments: object) -> Slopes:
        return Slopes(torch.tensor(torch.nan), {}, {})

    with pytest.raises(MicrotomeError, match="meta-training of maml diverged in step 1") as refused:
        MetaTraining(BASE, VALIDATION, QUICK).train(replace(KINDS["maml"], outer=outer))
    assert "smaller rates" in str(refused.value)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"kinds": ("maml", "nope")}, "there is no learner 'nope'"),
        ({"kinds": ("maml", "maml")}, "one of them twice"),
        ({"kinds": ()}, "not named"),
        ({"head": "nope"}, "there is no head 'nope'"),
        ({"ways": 1}, "ways is 1, and at least 2"),
        ({"shots": (0,)}, "shots are"),
        ({"shots": ()}, "shots are"),
        ({"inner_rate": 0.0}, "inner rate is 0"),
        ({"outer_rate": float("nan")}, "outer rate is nan"),
        ({"alignment": -1.0}, "weight of alignment is -1"),
        ({"alignment": float("inf")}, "weight of alignment is inf"),
        ({"patience": 0}, "patience is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "at most"),
    ],
)
def test_settings_that_are_none_are_named(setting: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        replace(QUICK, **setting)  # type: ignore[arg-type]


def test_a_recipe_is_read_back_as_it_was_written() -> None:
    assert MetaRecipe.from_json(QUICK.as_json()) == QUICK


# Slides --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pretrained", "maml", "proto_maml"])
def test_bags_of_many_tiles_are_learnt_from_by_attention(kind: str) -> None:
    base, validation = make_pool(["a", "b", "c"], rows=4, each=2), make_pool(["d", "e"], rows=3, each=2)
    recipe = replace(
        QUICK, head="gated_abmil", settings={"hidden": 5, "attention": 3}, iterations=2, shots=(1,)
    )
    learner = train(kind, base=base, validation=validation, recipe=recipe)
    assert learner.method.head.name == "gated_abmil"
    support = Support(base.pack(np.arange(len(base))), torch.from_numpy(base.labels), 3)
    query = base.pack(np.array([0, 5]))
    with torch.no_grad():
        said = learner.method.fit(support)(query).logits
    assert_close(said, learner.method.judge([support], [query])[0], rtol=1e-4, atol=1e-5)


# It learns -----------------------------------------------------------------------------------------------

_SIGNAL, _SITES = 4, 6


def nuisance_pool(classes: range, *, seed: int) -> Pool:
    """Classes differ a little, along a few directions; patients' slides a great deal, along the others."""
    signs = np.random.default_rng(7).choice([-1.0, 1.0], size=(16, _SIGNAL))
    rng = np.random.default_rng(seed)
    bags = []
    for patient in range(_SITES):
        for place, label in enumerate(classes):
            for number in range(8):
                x = rng.normal(0, 0.25, 12)
                x[:_SIGNAL] += signs[label]
                x[_SIGNAL:] += rng.normal(0, 3, 12 - _SIGNAL)
                name = f"p{patient}-{label}-{number}"
                bags.append(
                    Bag(name, x[None].astype(np.float32), np.zeros((1, 2), np.int32), place, f"p{patient}")
                )
    return pool_of(bags, classes=[f"class {label}" for label in classes])


def accuracy(method: Method, pool: Pool, *, shots: int, tasks: int = 40) -> float:
    sampler = EpisodeSampler(pool, Shape(ways=3, shots=shots, queries=5))
    right = []
    for number in range(tasks):
        episode = sampler.draw(3, number)
        support = Support(pool.pack(episode.support), torch.from_numpy(episode.support_labels), 3)
        query: PackedBags = pool.pack(episode.query)
        (logits,) = method.judge([support], [query])
        right.append((logits.argmax(dim=1).numpy() == episode.query_labels).mean())
    return float(np.mean(right))


def test_maml_learns_to_ignore_what_varies_and_beats_prototypes_on_classes_it_never_saw() -> None:
    base, validation, novel = (
        nuisance_pool(range(*ends), seed=seed) for seed, ends in enumerate([(0, 8), (8, 12), (12, 16)])
    )
    recipe = MetaRecipe(
        settings={"hidden": 32},
        ways=3,
        shots=(3,),
        queries=5,
        iterations=40,
        tasks_per_step=4,
        inner_rate=0.3,
        outer_rate=0.02,
        look_every=20,
        validation_tasks=20,
    )
    learner = MetaTraining(base, validation, recipe).train(KINDS["maml"])
    ours = accuracy(learner.method, novel, shots=3)
    theirs = accuracy(Prototypes(torch.from_numpy(base.mean())), novel, shots=3)
    assert ours > theirs + 0.15
    assert ours > 0.7
