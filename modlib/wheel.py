"""What a wheel holds beside the package: gin files, site profiles, experiments and the test cluster, in `shipped/`."""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

FOLDERS = ("gin_configs", "slurm", "experiments")


class BuildWithFiles(build_py):
    """setuptools' step that copies the package, and then the folders beside it; an editable install needs none."""

    def run(self) -> None:
        """Copy everything into the build folder."""
        super().run()
        if not self.editable_mode:
            for source, target in self._shipped().items():
                self.mkpath(str(target.parent))
                shutil.copy(source, target)  # with its mode: the test cluster is a program

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files of the build folder."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, *map(str, self._shipped().values())]

    def get_source_files(self) -> list[str]:
        """The files that a source distribution needs to build the wheel."""
        sources: list[str] = super().get_source_files()
        return [*sources, *map(str, self._shipped())]

    def _shipped(self) -> dict[Path, Path]:
        """Each file in the tree, and its place in the build folder."""
        target = Path(self.build_lib) / "modlib" / "shipped"
        found = (path for folder in FOLDERS for path in sorted(Path(folder).rglob("*")))
        return {
            path: target / path
            for path in found
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.parts)
        }
