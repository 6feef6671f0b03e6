"""Invented landscapes: fields, forest, water and towns, and how radar, optics and a coarse land cover map see them.

The spectra are hand-set top-of-atmosphere values in the range of real patches, the radar is a level for each surface
with speckle; nothing here is fit to train a model for use.
"""

import dataclasses

import numpy as np

# Top-of-atmosphere digital numbers, bands as in `S2_BANDS`; radar VV and VH in dB.
_OPTICS = {
    "forest": (1200, 860, 730, 470, 760, 1900, 2380, 2340, 2620, 860, 12, 1250, 540),
    "conifer": (1180, 820, 650, 410, 600, 1350, 1650, 1640, 1820, 620, 11, 880, 380),
    "grass": (1270, 980, 930, 720, 1230, 2350, 2850, 2850, 3120, 980, 13, 2000, 1080),
    "dry grass": (1420, 1260, 1290, 1480, 1780, 2180, 2420, 2460, 2720, 860, 15, 3050, 2080),
    "soil": (1480, 1320, 1310, 1530, 1760, 1900, 2050, 2090, 2280, 760, 15, 2800, 2300),
    "crop": (1240, 930, 880, 560, 1080, 2900, 3750, 3720, 4020, 1200, 14, 1880, 880),
    "stubble": (1540, 1420, 1500, 1850, 2130, 2350, 2560, 2630, 2860, 900, 16, 3500, 2650),
    "desert": (1800, 1780, 1980, 2420, 2620, 2720, 2850, 2860, 3050, 980, 19, 3700, 3250),
    "water": (1320, 990, 740, 440, 390, 320, 300, 265, 240, 90, 8, 95, 65),
    "river": (1410, 1160, 1060, 900, 800, 600, 560, 470, 410, 125, 9, 160, 105),
    "roof": (1600, 1480, 1470, 1560, 1650, 1780, 1880, 1980, 2020, 700, 20, 2250, 2000),
    "street": (1560, 1400, 1330, 1340, 1390, 1440, 1500, 1560, 1570, 540, 17, 1650, 1480),
    "orchard": (1290, 1010, 950, 860, 1240, 2080, 2520, 2540, 2800, 880, 13, 1950, 1180),
    "vineyard": (1400, 1180, 1140, 1220, 1560, 2050, 2330, 2370, 2600, 820, 14, 2450, 1750),
    "heath": (1300, 1010, 930, 880, 1180, 1800, 2120, 2140, 2400, 780, 13, 1980, 1180),
    "hall": (2150, 2180, 2200, 2300, 2380, 2430, 2500, 2650, 2560, 880, 22, 2700, 2400),
}
# A thick water cloud with some cirrus above it.
_CLOUD = (5600, 5400, 5200, 5300, 5500, 5700, 5900, 5900, 6100, 2600, 160, 4300, 3200)
_RADAR = {
    "forest": (-8.0, -13.5), "conifer": (-8.8, -14.3), "grass": (-12.5, -18.8), "dry grass": (-12.8, -20.0),
    "soil": (-12.5, -20.5), "crop": (-9.5, -15.0), "stubble": (-12.0, -19.5), "desert": (-15.0, -24.0),
    "water": (-21.5, -27.5), "river": (-20.0, -26.5), "roof": (-3.0, -11.5), "street": (-10.5, -18.0),
    "orchard": (-9.5, -15.5), "vineyard": (-10.5, -17.0), "heath": (-11.5, -17.5), "hall": (1.0, -9.0),
}  # fmt: skip
SURFACES = tuple(_OPTICS)
_CROPLAND = -1
_GROWN = (SURFACES.index("orchard"), SURFACES.index("vineyard"))
# Day of the northern year of greatest green, and the days from half green to it, before and after.
_CROPS = {"winter cereal": (125, 60, 35), "maize": (205, 40, 40), "beet": (215, 50, 60), "clover": (160, 130, 130),
          "rapeseed": (110, 60, 45), "second season": (300, 45, 45), "fallow": (150, 15, 15)}  # fmt: skip
# IGBP code of each surface, and the three LCCS codes (cover, use, hydrology) of each IGBP code, as in MCD12Q1.
_IGBP = {"forest": 4, "conifer": 4, "grass": 10, "dry grass": 10, "desert": 16, "water": 17, "river": 17, "roof": 13,
         "street": 13, "orchard": 12, "vineyard": 12, "heath": 7, "hall": 13}  # fmt: skip
_LCCS = {4: (14, 10, 10), 7: (22, 20, 20), 10: (31, 30, 30), 12: (31, 36, 30), 13: (1, 9, 1), 14: (31, 35, 30),
         16: (1, 1, 1), 17: (3, 3, 3)}  # fmt: skip
_DAYS = {"ROIs1158_spring": 105, "ROIs1868_summer": 196, "ROIs1970_fall": 288, "ROIs2017_winter": 15}
_LOOKS = 4.4
"""Equivalent number of looks of a Sentinel-1 ground range detected image (ESA product specification)."""
_COARSE = 50


@dataclasses.dataclass(frozen=True)
class Place:
    """A landscape to invent.

    Attributes:
        scene: such as "ROIs1158_spring_1".
        epsg: UTM zone.
        origin: easting and northing of the upper left corner of patch 0, metres.
        field: typical width and length of a field, metres.
        shares: of forest, natural grass, and town, 0..1 of the land; the rest is cropland.
        base: the surface between the fields.
        water: width of the river in metres; negative for a lake of that radius.
        early: days that crops are ahead of the temperate calendar, as where winters are mild.
        theme: what becomes of the fields: "" (crops), "orchards" (and vineyards), "pastures" (with hedges), "heath",
            "halls" (of industry), or "highway" (crops, and a road through them).
    """

    scene: str
    epsg: int
    origin: tuple[float, float]
    field: tuple[float, float]
    shares: tuple[float, float, float]
    base: str = "grass"
    water: float = 60.0
    early: float = 0.0
    theme: str = ""

    @property
    def southern(self) -> bool:
        return 32700 < self.epsg <= 32760


PLACES = {
    "kenya": Place(
        "ROIs1158_spring_1", 32736, (766412.338992, 9951742.836060), (45, 90), (0.22, 0.12, 0.04), water=25, early=-170
    ),
    "iran": Place(
        "ROIs1868_summer_4", 32639, (268433.604418, 3556310.227309), (90, 240), (0.0, 0.45, 0.05), "desert", water=70
    ),
    "brazil": Place("ROIs2017_winter_21", 32721, (612087.911437, 8605519.442683), (520, 900), (0.34, 0.06, 0.0)),
    "france": Place("ROIs1970_fall_11", 32631, (428719.173652, 5377641.390128), (150, 330), (0.20, 0.10, 0.06)),
    "india": Place(
        "ROIs2017_winter_30", 32643, (467121.550213, 3413907.618840), (60, 130), (0.02, 0.05, 0.12), early=80
    ),
    "ukraine": Place("ROIs1868_summer_52", 32636, (561230.447719, 5489417.715206), (600, 1100), (0.12, 0.1, 0.04)),
    "canada": Place(
        "ROIs1970_fall_77", 32613, (402955.820391, 5752284.038817), (780, 780), (0.08, 0.12, 0.0), "dry grass", -500
    ),
    "australia": Place(
        "ROIs1158_spring_90", 32755, (391448.266105, 6154033.907442), (420, 800), (0.15, 0.25, 0.02), "dry grass", -350
    ),
}


def make_scene(
    place: Place, shape: tuple[int, int], rng: np.random.Generator, *, clouds: float = 0.0
) -> dict[str, np.ndarray]:
    """One place as its sensors see it, and what is really there.

    Args:
        place: the landscape.
        shape: (H, W) in pixels of 10 m.
        rng: of all that is random.
        clouds: share of the optical pixels under cloud, 0..1; their shadows fall beside them.

    Returns:
        "s1" float32 (2, H, W) in dB; "s2" uint16 (13, H, W); "lc" uint8 (4, H, W), the coarse land cover; "cropland"
        uint8 (1, H, W), 1 on every pixel of cropland, the field borders included.
    """
    layers = see_scene(place, shape, rng, clouds=clouds)
    del layers["surface"]
    return layers


def see_scene(
    place: Place, shape: tuple[int, int], rng: np.random.Generator, *, clouds: float = 0.0
) -> dict[str, np.ndarray]:
    """`make_scene`, and "surface" int8 (1, H, W): the number in `SURFACES` of each pixel, -1 for fields of crops."""
    # Patches of 64 px would see a corner of one field: the landscape is drawn at least 256 px wide and cut.
    full = tuple(max(side, 256) for side in shape)
    surface = _landscape(place, full, rng)
    parcel, edge = _parcels(place, full, rng)
    if place.theme:
        surface = _themed(place.theme, surface, parcel, edge, rng.spawn(1)[0])
    crops = list(_CROPS)
    kinds = rng.choice(len(crops), size=parcel.max() + 1, p=(0.27, 0.24, 0.1, 0.12, 0.1, 0.12, 0.05))[parcel]
    green = _greenness(place, kinds, rng.normal(0, 12, parcel.max() + 1)[parcel])
    bare = rng.random(parcel.max() + 1)[parcel]
    vigour = 1 + 0.10 * _noise(full, 40, rng) + 0.06 * _noise(full, 6, rng)
    green = np.clip(green * vigour, 0, 1)

    fields = (surface == _CROPLAND) & ~edge
    cover = np.where(surface == _CROPLAND, SURFACES.index(place.base), surface)
    optics = np.array([_OPTICS[name] for name in SURFACES], np.float32)
    radar = np.array([_RADAR[name] for name in SURFACES], np.float32)
    ground = {name: np.array(_OPTICS[name], np.float32) for name in ("soil", "stubble", "crop")}
    s2 = optics[cover]  # (H, W, 13)
    mix = bare[fields][:, None]
    soil = (1 - mix) * ground["soil"] * 0.88 + mix * ground["stubble"]
    s2[fields] = soil + green[fields][:, None] * (ground["crop"] - soil)
    s1 = radar[cover]  # (H, W, 2)
    rough = radar[SURFACES.index("soil")] + 3 * (mix - 0.5)
    s1[fields] = rough + green[fields][:, None] * (radar[SURFACES.index("crop")] - rough)

    texture = {"forest": 0.13, "conifer": 0.13, "roof": 0.16, "street": 0.08, "water": 0.015, "river": 0.03,
               "orchard": 0.16, "vineyard": 0.11, "heath": 0.12, "hall": 0.12}  # fmt: skip
    grain = np.array([texture.get(name, 0.05) for name in SURFACES], np.float32)[cover]
    tint = np.concatenate([np.full(4, 0.6), np.full(7, 1.0), np.full(2, 0.9)])
    broad = 0.05 * _noise(full, 90, rng) * ~np.isin(cover, [SURFACES.index("water"), SURFACES.index("river")])
    s2 *= 1 + (grain * _noise(full, 1.2, rng) + broad)[..., None] * tint
    s2 = np.stack([_native(s2[..., b], step, rng) for b, step in enumerate((6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 6, 2, 2))])
    if clouds > 0:
        s2 = _with_clouds(s2, clouds, rng)
    # The buildings of a town shine in radar only where their walls face the satellite.
    s1 += (3.0 * (cover == SURFACES.index("roof")) * _noise(full, 1.5, rng) + 0.6 * _noise(full, 25, rng))[..., None]
    s1 = np.moveaxis(s1, -1, 0) + 10 * np.log10(np.maximum(_speckle(full, rng), 1e-3))
    cut = np.s_[:, : shape[0], : shape[1]]
    lc = _land_cover(np.where(surface == _CROPLAND, _CROPLAND, cover))
    return {
        "s1": s1.astype(np.float32)[cut],
        "s2": np.clip(np.rint(s2), 1, 16000).astype(np.uint16)[cut],
        "lc": lc[cut],
        "cropland": np.isin(surface, (_CROPLAND, *_GROWN)).astype(np.uint8)[None][cut],
        "surface": surface.astype(np.int8)[None][cut],
    }


def _landscape(place: Place, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Index into `SURFACES` for each pixel, `_CROPLAND` where fields are."""
    forest, grass, town = place.shares
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    surface = np.full(shape, _CROPLAND)
    wild = place.base if place.base == "desert" else "grass" if place.base == "grass" else "dry grass"
    surface[_top(_noise(shape, 28, rng) + 0.12 * _noise(shape, 3, rng), grass)] = SURFACES.index(wild)
    woods = _top(_noise(shape, 24, rng) + 0.15 * _noise(shape, 2.5, rng), forest)
    conifers = woods & (_noise(shape, 18, rng) > (0.6 if not place.southern else 9))
    surface[woods] = SURFACES.index("forest")
    surface[conifers] = SURFACES.index("conifer")
    if town:
        # One or two settlements: the density falls from the centre, streets run on a turned grid.
        centre = rng.uniform(0.2, 0.8, 2) * shape
        far = np.hypot(y - centre[0], x - centre[1]) / np.sqrt(town * y.size / np.pi) + 0.3 * _noise(shape, 8, rng)
        u, v = _turn(x, y, rng.uniform(0, np.pi))
        built = far < 1
        streets = (u % 9 < 1.6) | (v % 13 < 1.6)
        gardens = _noise(shape, 2, rng) > 0.4 + 0.8 * (1 - far)
        surface[built] = SURFACES.index("roof")
        surface[built & gardens] = SURFACES.index("grass")
        surface[built & streets] = SURFACES.index("street")
    if place.water < 0:
        centre = rng.uniform(0.25, 0.75, 2) * shape
        radius = -place.water / 10
        lake = np.hypot(y - centre[0], x - centre[1]) + 0.35 * radius * _noise(shape, 16, rng) < radius
        surface[lake] = SURFACES.index("water")
    else:
        # A meander across the longer side, with a strip of trees on its banks.
        along, across = (x, y) if shape[1] >= shape[0] else (y, x)
        waves = sum(
            a * np.sin(2 * np.pi * along / w + rng.uniform(0, 2 * np.pi)) for a, w in ((26, 330), (11, 120), (4, 47))
        )
        slope = rng.uniform(-0.35, 0.35)
        distance = np.abs(across - min(shape) * rng.uniform(0.35, 0.65) - waves - slope * (along - max(shape) / 2))
        half = place.water / 20
        surface[(distance < half + 3.5) & (_noise(shape, 4, rng) > -0.3)] = SURFACES.index("forest")
        surface[distance < half + 0.5] = SURFACES.index("river")
    return surface


def _themed(
    theme: str, surface: np.ndarray, parcel: np.ndarray, edge: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """`surface` (H, W) with its fields, or its towns for "halls", made into what the theme says."""
    fields, surface = surface == _CROPLAND, surface.copy()
    kind = rng.random(parcel.max() + 1)[parcel]
    if theme == "orchards":
        surface[fields & ~edge & (kind < 0.5)] = SURFACES.index("orchard")
        surface[fields & ~edge & (kind >= 0.5) & (kind < 0.92)] = SURFACES.index("vineyard")
    elif theme == "pastures":
        surface[fields] = SURFACES.index("grass")
        surface[fields & (kind > 0.8)] = SURFACES.index("dry grass")
        surface[fields & edge] = SURFACES.index("forest")
    elif theme == "heath":
        surface[fields] = SURFACES.index("heath")
        open_ground = _noise(surface.shape, 9, rng) + 0.5 * _noise(surface.shape, 2, rng)
        surface[fields & (open_ground > 0.7)] = SURFACES.index("dry grass")
        surface[fields & (open_ground < -1.6)] = SURFACES.index("forest")
    elif theme == "halls":
        y, x = np.mgrid[: surface.shape[0], : surface.shape[1]].astype(np.float32)
        u, v = _turn(x, y, rng.uniform(0, np.pi))
        plot = (np.floor(u / 14).astype(int) % 64) * 64 + np.floor(v / 9).astype(int) % 64
        built = rng.random(64 * 64)[plot] < 0.55
        inside = (u % 14 > 2.5) & (v % 9 > 2)
        town = np.isin(surface, [SURFACES.index(name) for name in ("roof", "street")])
        surface[town] = SURFACES.index("street")
        surface[town & inside & built] = SURFACES.index("hall")
        surface[town & inside & ~built & (kind > 0.6)] = SURFACES.index("grass")
    elif theme == "highway":
        y, x = np.mgrid[: surface.shape[0], : surface.shape[1]].astype(np.float32)
        u, v = _turn(x - surface.shape[1] / 2, y - surface.shape[0] / 2, rng.uniform(0, np.pi))
        far = np.abs(v + 12 * np.sin(u / 90 + rng.uniform(0, 2 * np.pi)))
        surface[far < 3.2] = SURFACES.index("grass")
        surface[far < 1.7] = SURFACES.index("street")
    return surface


def _parcels(place: Place, shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Number of the field at each pixel, and whether it is a field's edge: blocks of land, each cut into strips."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    width, length = place.field[0] / 10, place.field[1] / 10
    side = 3.2 * max(width, length, 12)
    # Warped coordinates bend the borders of blocks a little, as roads and streams do.
    bx, by = x + 4 * _noise(shape, 30, rng), y + 4 * _noise(shape, 30, rng)
    block = np.zeros(shape, int)
    nearest = np.full(shape, np.inf, np.float32)
    count = (int(shape[0] / side) + 3, int(shape[1] / side) + 3)
    seeds = (np.indices(count).reshape(2, -1).T - 1 + rng.uniform(0.15, 0.85, (count[0] * count[1], 2))) * side
    for number, (sy, sx) in enumerate(seeds):
        distance = np.hypot(by - sy, bx - sx)
        block[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    main = rng.uniform(0, np.pi)
    angle = main + rng.normal(0, 0.25, len(seeds)) + np.pi / 2 * rng.integers(0, 2, len(seeds))
    scale = rng.uniform(0.7, 1.35, (2, len(seeds)))
    u, v = _turn(x, y, angle[block])
    u, v = u / (width * scale[0][block]), v / (length * scale[1][block])
    # Rows are shifted against each other, and cut at uneven widths.
    row = np.floor(v).astype(int)
    shift = rng.random((len(seeds), 512))
    u = u + shift[block, row % 512]
    u = u + 0.16 * np.sin(2 * np.pi * (u + shift[block, (row + 7) % 512]))
    column = np.floor(u).astype(int)
    key = (block.astype(np.int64) * 4096 + row % 4096) * 4096 + column % 4096
    parcel = np.unique(key, return_inverse=True)[1].reshape(shape)
    step = (np.diff(parcel, axis=0, prepend=parcel[:1]) != 0) | (np.diff(parcel, axis=1, prepend=parcel[:, :1]) != 0)
    road = (np.diff(block, axis=0, prepend=block[:1]) != 0) | (np.diff(block, axis=1, prepend=block[:, :1]) != 0)
    # Hedges and tracks line some fields; small fields have borders below the pixel.
    edge = step & (_noise(shape, 12, rng) > (0.6 if width > 8 else 1.2))
    return parcel, edge | road


def _greenness(place: Place, kinds: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Share of green canopy 0..1 of crop `kinds` on the day of the scene's season, `late` days behind the calendar."""
    day = _DAYS[place.scene.rpartition("_")[0]] + place.early + (182 if place.southern else 0)
    peak, rise, fall = np.array(list(_CROPS.values()), float)[kinds].transpose(2, 0, 1)
    since = (day - peak - late + 182.5) % 365 - 182.5
    height = np.where(kinds == list(_CROPS).index("fallow"), 0.3, 1.0)
    return height * np.exp(-np.log(2) * (since / np.where(since < 0, rise, fall)) ** 2)


def _land_cover(surface: np.ndarray) -> np.ndarray:
    """Surfaces -> uint8 (4, H, W): the most frequent IGBP code of each coarse cell, and its LCCS codes."""
    codes = np.array([_IGBP.get(name, 10) for name in SURFACES] + [12])[surface]
    igbp = np.empty_like(codes)
    for top in range(0, codes.shape[0], _COARSE):
        for left in range(0, codes.shape[1], _COARSE):
            cell = np.s_[top : top + _COARSE, left : left + _COARSE]
            counts = np.bincount(codes[cell].ravel(), minlength=18)
            cropland = counts[12] / counts.sum()
            igbp[cell] = 12 if cropland >= 0.6 else 14 if cropland >= 0.4 else counts.argmax()
    table = np.zeros((18, 4), np.uint8)
    for code, others in _LCCS.items():
        table[code] = (code, *others)
    return np.moveaxis(table[igbp], -1, 0)


def _with_clouds(s2: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(13, H, W) with clouds of ragged edges over `share` of it, and their shadows to the north-west."""
    field = _noise(s2.shape[1:], 22, rng) + 0.25 * _noise(s2.shape[1:], 5, rng)
    thick = np.clip((field - np.quantile(field, 1 - share)) / 0.5, 0, 1)
    shade = np.roll(thick, (-14, -10), axis=(0, 1)) * (1 - thick)
    cloud = np.array(_CLOUD, np.float32)[:, None, None] * (1 + 0.12 * _noise(s2.shape[1:], 9, rng))
    return s2 * (1 - 0.5 * shade) * (1 - thick) + cloud * thick


def _native(band: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
    """A band at its own resolution of `step` x 10 m, repeated to 10 m, with sensor noise."""
    shape = band.shape
    if step > 1:
        height, width = (-(-side // step) * step for side in band.shape)
        padded = np.pad(band, ((0, height - band.shape[0]), (0, width - band.shape[1])), mode="edge")
        band = padded.reshape(height // step, step, width // step, step).mean(axis=(1, 3))
    band = band + rng.normal(0, 2 + 0.004 * band)
    return band.repeat(step, 0).repeat(step, 1)[: shape[0], : shape[1]]


def _noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field of mean 0 and deviation 1, correlated over about `scale` pixels."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    spectrum = np.fft.rfft2(rng.normal(size=shape)) * np.exp(-2 * (np.pi * scale) ** 2 * (fy**2 + fx**2))
    field = np.fft.irfft2(spectrum, s=shape)
    return ((field - field.mean()) / (field.std() + 1e-12)).astype(np.float32)


def _speckle(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Factors (2, H, W) of mean 1 on power, `_LOOKS` looks; neighbours share it: the detail exceeds a pixel."""
    kernel = np.array([0.25, 0.5, 0.25])
    looks = _LOOKS * (kernel**2).sum() ** 2
    power = rng.gamma(looks, 1 / looks, size=(2, shape[0] + 2, shape[1] + 2))
    power = sum(weight * power[:, k : k + shape[0]] for k, weight in enumerate(kernel))
    return sum(weight * power[:, :, k : k + shape[1]] for k, weight in enumerate(kernel))


def _top(field: np.ndarray, share: float) -> np.ndarray:
    """The highest `share` of the pixels of a field."""
    return field > np.quantile(field, 1 - share) if share > 0 else np.zeros(field.shape, bool)


def _turn(x: np.ndarray, y: np.ndarray, angle: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


__all__ = ["PLACES", "Place", "SURFACES", "make_scene", "see_scene"]
