// Reads files through Bio-Formats for the tests: facts as lines on standard output, pixels as raw files.
// Run by tests/heatmaps/conftest.py with the jar that MICROTOME_BIOFORMATS_JAR names; no part of Microtome.

import java.nio.file.Files;
import java.nio.file.Path;
import loci.common.DebugTools;
import loci.formats.FormatTools;
import loci.formats.ImageReader;
import loci.formats.MetadataTools;
import loci.formats.meta.IMetadata;

public class BioFormatsLevels {
    public static void main(String[] words) throws Exception {
        DebugTools.setRootLevel("OFF");
        for (int file = 1; file < words.length; file++) {
            IMetadata meta = MetadataTools.createOMEXMLMetadata();
            ImageReader reader = new ImageReader();
            reader.setFlattenedResolutions(false);
            reader.setMetadataStore(meta);
            reader.setId(words[file]);
            say(file, "series", reader.getSeriesCount());
            say(file, "mpp_x", meta.getPixelsPhysicalSizeX(0).value());
            say(file, "mpp_y", meta.getPixelsPhysicalSizeY(0).value());
            say(file, "unit", meta.getPixelsPhysicalSizeX(0).unit().getSymbol());
            say(file, "type", FormatTools.getPixelTypeString(reader.getPixelType()));
            say(file, "rgb", reader.isRGB());
            for (int channel = 0; channel < meta.getChannelCount(0); channel++) {
                say(file, "channel", meta.getChannelName(0, channel));
            }
            for (int level = 0; level < reader.getResolutionCount(); level++) {
                reader.setResolution(level);
                String layout = reader.getSizeY() + " " + reader.getSizeX() + " " + reader.getRGBChannelCount()
                    + " " + reader.isInterleaved() + " " + reader.isLittleEndian() + " " + reader.getImageCount();
                say(file, "level", layout);
                for (int plane = 0; plane < reader.getImageCount(); plane++) {
                    Path out = Path.of(words[0], file + "-" + level + "-" + plane);
                    Files.write(out, reader.openBytes(plane));
                }
            }
            reader.close();
        }
    }

    private static void say(int file, String key, Object value) {
        System.out.println(file + "\t" + key + "\t" + value);
    }
}
