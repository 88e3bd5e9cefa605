"""`python -m unidetox_ray` = `unidetox`."""

from unidetox_ray.cli import main

if __name__ == "__main__":
    main()
