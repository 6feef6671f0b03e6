"""The quickstart of the README, as it stands there: embeddings of images, of radar alone, and nearest neighbours.

Run it in an empty folder: it invents a sample there and takes some 10 s on one core. For your own data put your folder
in the place of `images`.
"""

from croplem_hf import Embedder, EmbeddingIndex, generate_sen12ms, open_source

images = generate_sen12ms("sample", scenes=2)        # or your SEN12MS folder, series table, metadata.csv
source = open_source(images)
embedder = Embedder.from_pretrained("croplem/mae-s1s2")

print(embedder.encode([source[0], source[1]]).shape)              # (2, 256)
print(embedder.encode(source[0], sensors=["s1"]).shape)           # (256,): radar alone, under clouds
print(embedder.encode(source[0], pooling="dense").shape)          # (16, 16, 128): of each patch of 16 pixels
table = embedder.embed_source(source, "patches.parquet")          # resumes if cut off
index = EmbeddingIndex.build(table)
found = index.query(ids=[table.ids[0]], k=3)
print(found.ids[0][0], found.scores[0, 0].round(2))               # ROIs1158_spring_1_p59 1.0

from croplem_hf import CropLEMImageProcessor, CropLEMModel

model = CropLEMModel.from_pretrained("croplem/mae-s1s2").eval()
processor = CropLEMImageProcessor.from_pretrained("croplem/mae-s1s2")
outputs = model(**processor([source[0]]), patch_size=8)
print(outputs.pooler_output.shape)                                # torch.Size([1, 256])
print(CropLEMModel.dense_features(outputs).shape)                 # torch.Size([1, 32, 32, 128])
