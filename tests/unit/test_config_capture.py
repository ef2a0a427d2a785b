"""Constructor arguments are remembered, written as JSON and rebuilt."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from plssm._config_capture import Configurable, class_name, decode, encode, find_class
from plssm.dynamics import PLRNN, ManifoldAttractor
from plssm.errors import PlssmError


class Base(Configurable, nn.Module):
    def __init__(self, size, *, scale=1.0):
        super().__init__()
        self.size, self.scale = size, scale
        self.weight = nn.Parameter(torch.zeros(size))


class Plain(Base):
    """Inherits the constructor."""


class Forwarding(Base):
    def __init__(self, extra, **options):
        super().__init__(size=len(extra), **options)
        self.extra = extra


class Holder(Configurable):
    def __init__(self, part, settings=None):
        self.part, self.settings = part, settings


class Stars(Configurable):
    def __init__(self, *sizes):
        self.sizes = sizes


@dataclass(frozen=True)
class Settings:
    rate: float
    units: tuple[int, ...] = ()


def through_json(thing):
    return type(thing).from_config(json.loads(json.dumps(thing.config())))


def test_positional_keyword_and_default_arguments_have_their_names():
    assert Base(3).config() == {"size": 3, "scale": 1.0}
    assert Plain(size=2, scale=0.5).config() == {"size": 2, "scale": 0.5}
    assert Forwarding([1, 2], scale=2.0).config() == {"extra": [1, 2], "scale": 2.0}
    again = through_json(Forwarding([1, 2], scale=2.0))
    assert (again.extra, again.scale, again.weight.shape) == ([1, 2], 2.0, (2,))


def test_objects_inside_arguments():
    thing = Holder(Plain(3), {"a": Settings(0.1, (1, 2)), "b": [Settings(0.2)]})
    again = through_json(thing)
    assert isinstance(again.part, Plain)
    assert again.part.size == 3
    assert again.settings["b"] == [Settings(0.2, [])]
    model = PLRNN(4, regularizer=ManifoldAttractor(2.0, units=(0, 3)))
    assert through_json(model).regularizer == model.regularizer


def test_numpy_numbers_are_numbers():
    config = Base(np.int64(3), scale=np.float32(0.5)).config()
    assert json.dumps(config) == '{"size": 3, "scale": 0.5}'


def test_copies_keep_the_arguments():
    thing = Plain(3, scale=2.0)
    for other in (copy.deepcopy(thing), copy.copy(thing), pickle.loads(pickle.dumps(thing))):
        assert other.config() == {"size": 3, "scale": 2.0}
        assert torch.equal(other.weight, thing.weight)
    assert not any("argument" in name for name in thing.state_dict())


def test_later_changes_of_an_argument_do_not_count():
    sizes = [1, 2]
    thing = Forwarding(sizes)
    sizes.append(3)
    assert thing.config()["extra"] == [1, 2]


def test_what_cannot_be_saved_is_refused_only_when_asked():
    thing = Holder(torch.zeros(2))
    with pytest.raises(PlssmError, match=r"Holder\(part=...\) is a Tensor"):
        thing.config()
    with pytest.raises(PlssmError, match=r"Holder\(part=...\) is a function"):
        Holder(through_json).config()
    with pytest.raises(PlssmError, match=r"Stars\(sizes=...\) was passed by position"):
        Stars(1, 2).config()
    assert Stars().config() == {}
    with pytest.raises(PlssmError, match="dict"):
        Holder({1: 2}).config()


def test_a_wrong_call_says_what_python_says():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'size'"):
        Base()
    with pytest.raises(TypeError, match="unexpected keyword"):
        Base(3, width=2)


def test_names_of_classes():
    assert find_class(class_name(Holder)) is Holder
    for name in ("no.such.module:Thing", "plssm.dynamics:Nothing", "nonsense", ":"):
        with pytest.raises(PlssmError, match="cannot find the class"):
            find_class(name)
    with pytest.raises(PlssmError, match="not a class"):
        find_class("plssm.dynamics.noise:make_noise")
    with pytest.raises(PlssmError, match="neither a dataclass nor configurable"):
        decode({"__class__": "collections:OrderedDict", "arguments": {}})
    assert decode(encode({"a": [1, None, True, "x"]})) == {"a": [1, None, True, "x"]}
