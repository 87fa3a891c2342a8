"""Small copies of published data sets: their names, types and traps, and pixels that say where they are."""

import csv

import numpy as np
from PIL import Image

from tests.test_data_rasters import tiff

# SAR2Opt: per scene the last row and column, and those of the last training tile in row order; the stride is 240
SAR2OPT = {
    1: (3840, 5280, 2640, 4560), 2: (6480, 3360, 4560, 1920), 3: (3120, 2400, 2160, 1680), 5: (960, 2160, 720, 960),
    6: (3120, 5040, 2160, 3840), 7: (1440, 2880, 960, 2400), 8: (1680, 1920, 1200, 960), 11: (1440, 1440, 960, 1200),
    12: (2400, 5040, 1680, 3360), 13: (4560, 3360, 3120, 3360),
}  # fmt: skip
NORTH, SOUTH = "20190804111224_20190804111453", "20190804113605_20190804113837"
EAST = 591000.0  # of the first SpaceNet 6 tile, m


def place(size):
    """0..255 along the rows and then the columns: the value tells the place, and no turn leaves it as it is."""
    return np.linspace(0, 255, size * size).reshape(size, size)


def sar2opt_names():
    """``trainA/1_0_0`` and so on for all 2,077 tiles, SAR side."""
    return [
        f"{'train' if (row, col) <= (last_row, last_col) else 'test'}A/{scene}_{row}_{col}"
        for scene, (rows, cols, last_row, last_col) in SAR2OPT.items()
        for row in range(0, rows + 1, 240)
        for col in range(0, cols + 1, 240)
    ]


def sar2opt(root, scenes=(3, 6, 11), size=16):
    """JPEG, grey on the SAR side, of some scenes."""
    for name in sar2opt_names():
        if int(name.split("/")[1].split("_")[0]) in scenes:
            for side, mode in (("A", "L"), ("B", "RGB")):
                path = root / f"{name.replace('A/', side + '/')}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(place(size).astype(np.uint8)).convert(mode).save(path, quality=95)
    return root


def qxs(root, count=10, size=16):
    for folder, mode in (("sar_256_oc_0.2", "L"), ("opt_256_oc_0.2", "RGB")):
        (root / folder).mkdir(parents=True)
        for n in range(1, count + 1):
            Image.fromarray(place(size).astype(np.uint8)).convert(mode).save(root / folder / f"{n}.png")
    return root


def spacenet6(root, count=12, size=20, step=225.0, crs="EPSG:32631"):
    """Tiles from west to east, ``step`` m apart, of a northern and a southern strip; four bands of float32 intensity,
    HH HV VH VV, whose upper left quarter is nodata; a panchromatic twin; the test part, which has SAR only."""
    from rasterio import Affine

    top = root / "train" / "AOI_11_Rotterdam"
    for n in range(count):
        strip, corner = (NORTH, SOUTH)[n % 2], Affine(0.5, 0, EAST + n * step, 0, -0.5, 5.75e6)
        power = np.stack([10 ** ((low + 5 * place(size) / 255) / 10) for low in (11, 12, 12, 10)]).astype(np.float32)
        power[:, : size // 2, : size // 2] = 0
        pixels = {"SAR-Intensity": power, "PS-RGB": np.stack([place(size)] * 3).astype(np.uint8)}
        pixels["PAN"] = pixels["PS-RGB"][:1].astype(np.uint16)
        for kind, values in pixels.items():
            path = top / kind / f"SN6_Train_AOI_11_Rotterdam_{kind}_{strip}_tile_{8000 + n}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tiff(path, values, crs=crs, transform=corner)
    other = root / "test_public" / "AOI_11_Rotterdam" / "SAR-Intensity"
    other.mkdir(parents=True)
    tiff(other / f"SN6_Test_Public_AOI_11_Rotterdam_SAR-Intensity_{NORTH}_tile_1.tif", power)
    (top / "SummaryData").mkdir()
    (top / "SummaryData" / "SAR_orientations.txt").write_text(
        f"{NORTH} 0\n{SOUTH} 1\n20190801111111_20190801111112 1\n"
    )
    return root


def sen12ms(root, scenes=("ROIs1158_spring_1", "ROIs1158_spring_63", "ROIs1158_spring_112"), patches=2, size=16):
    """VV, VH as float32 dB, and 13 bands of uint16 reflectance x 1e4, in which band n has the value n * 100; a patch
    with NaN, as ROIs1868_summer_s1_146_p202 has it; land cover, which belongs to no pair."""
    for scene in (*scenes, "ROIs1868_summer_146"):
        season, number = scene.rsplit("_", 1)
        for patch in range(30, 30 + patches) if scene in scenes else [202]:
            sar = np.stack([-20 + 15 * place(size) / 255, -25 + 15 * place(size) / 255]).astype(np.float32)
            if patch == 202:
                sar[:, 3, 4] = np.nan
            opt = np.full((13, size, size), 100, np.uint16) * np.arange(1, 14, dtype=np.uint16)[:, None, None]
            for side, pixels in (("s1", sar), ("s2", opt), ("lc", opt[:4])):
                path = root / season / f"{side}_{number}" / f"{season}_{side}_{number}_p{patch}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tiff(path, pixels)
    return root


def lists(folder, **splits):
    """Text lists as other code has them: ``train_eo_list.txt``, one path a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        (folder / f"{name}_eo_list.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def rows(manifest):
    """The rows of a manifest's CSV by id."""
    with open(manifest / "manifest.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}
