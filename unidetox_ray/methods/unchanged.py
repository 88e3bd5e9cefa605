"""`base`: the model as it is, the row that every other is compared with."""

from unidetox_ray.methods.base import UnchangedMethod

METHOD = UnchangedMethod(name="base", summary="the model as it is")
