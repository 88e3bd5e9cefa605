"""`base`: the model as it is, the row that every other is compared with."""

from unidetox_ray.methods.base import Method

METHOD = Method(name="base", kind="unchanged", summary="the model as it is")
