"""`python -m arc_ray`: the command line where `arc-ray` is not on the path."""

from arc_ray.cli import main

if __name__ == "__main__":
    main()
