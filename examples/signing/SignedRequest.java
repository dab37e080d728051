import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.KeyPairGenerator;
import java.security.MessageDigest;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.SecureRandom;
import java.security.Signature;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.PSSParameterSpec;
import java.security.spec.X509EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Signs requests to the publisher with what a JDK has; docs/signatures.md explains each step.
 *
 * Reads commands from standard input, one a line, fields between tabs, and answers each with lines
 * and an empty one:
 *
 *   keys    PRIVATE PUBLIC                                    makes a key pair, as two PEM files
 *   headers SCHEME METHOD TARGET CONSUMER VERSION KEY BODY    the headers that sign one request
 *   verify  SCHEME KEY SIGNATURE MESSAGE                      good or bad; KEY is a public one
 *
 * SCHEME is legacy, rsa-v1_5-sha256 or rsa-pss-sha512; TARGET path and query; BODY and MESSAGE
 * files.
 */
public class SignedRequest {
    public static void main(String[] arguments) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] field = line.split("\t");
            switch (field[0]) {
                case "keys" -> makeKeys(Path.of(field[1]), Path.of(field[2]));
                case "headers" -> headers(field[1], field[2], field[3], field[4], field[5],
                        privateKey(Path.of(field[6])), Files.readAllBytes(Path.of(field[7])))
                        .forEach((name, value) -> System.out.println(name + ": " + value));
                case "verify" -> System.out.println(
                        verify(field[1], publicKey(Path.of(field[2])), field[3],
                                Files.readAllBytes(Path.of(field[4]))) ? "good" : "bad");
                default -> throw new IllegalArgumentException(line);
            }
            System.out.println();
        }
    }

    static Map<String, String> headers(String scheme, String method, String target, String consumer,
            String version, PrivateKey key, byte[] body) throws Exception {
        return scheme.equals("legacy")
                ? legacy(consumer, version, key)
                : message(scheme, method, target, consumer, version, key, body);
    }

    /** Consumer id, time and key version, each with a line feed; RSA with SHA-256. */
    static Map<String, String> legacy(String consumer, String version, PrivateKey key)
            throws Exception {
        String timestamp = Long.toString(System.currentTimeMillis());
        String canonical = consumer + "\n" + timestamp + "\n" + version + "\n";
        Map<String, String> headers = new LinkedHashMap<>();
        headers.put("WM-CONSUMER.ID", consumer);
        headers.put("WM-CONSUMER.INTIMESTAMP", timestamp);
        headers.put("WM-SEC.KEY-VERSION", version);
        headers.put("WM-SEC.AUTH-SIGNATURE", sign("legacy", key, canonical));
        return headers;
    }

    /** RFC 9421: method, path, query, the body's digest and type, and the consumer id. */
    static Map<String, String> message(String algorithm, String method, String target,
            String consumer, String version, PrivateKey key, byte[] body) throws Exception {
        Map<String, String> headers = new LinkedHashMap<>();
        headers.put("WM-CONSUMER.ID", consumer);
        int mark = target.indexOf('?');
        Map<String, String> covered = new LinkedHashMap<>();
        covered.put("@method", method);
        covered.put("@path", mark < 0 ? target : target.substring(0, mark));
        if (mark >= 0) {
            covered.put("@query", target.substring(mark));
        }
        if (body.length > 0) {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(body);
            headers.put("Content-Digest", "sha-256=:" + base64(digest) + ":");
            covered.put("content-digest", headers.get("Content-Digest"));
            // Sent by whoever sends the request; the same goes for Content-Encoding.
            covered.put("content-type", "application/json");
        }
        covered.put("wm-consumer.id", consumer);
        byte[] nonce = new byte[18];
        new SecureRandom().nextBytes(nonce);
        List<String> names = new ArrayList<>();
        StringBuilder base = new StringBuilder();
        covered.forEach((name, value) -> {
            names.add('"' + name + '"');
            base.append('"').append(name).append("\": ").append(value).append('\n');
        });
        String parameters = "(" + String.join(" ", names) + ")"
                + ";created=" + System.currentTimeMillis() / 1000
                + ";keyid=\"" + consumer + ":" + version + "\""
                + ";alg=\"" + algorithm + "\""
                + ";nonce=\"" + base64(nonce) + "\"";
        base.append("\"@signature-params\": ").append(parameters);
        headers.put("Signature-Input", "sig1=" + parameters);
        headers.put("Signature", "sig1=:" + sign(algorithm, key, base.toString()) + ":");
        return headers;
    }

    static Signature algorithm(String scheme) throws Exception {
        if (!scheme.equals("rsa-pss-sha512")) {
            return Signature.getInstance("SHA256withRSA");
        }
        Signature pss = Signature.getInstance("RSASSA-PSS");
        pss.setParameter(new PSSParameterSpec("SHA-512", "MGF1", MGF1ParameterSpec.SHA512, 64, 1));
        return pss;
    }

    static String sign(String scheme, PrivateKey key, String message) throws Exception {
        Signature signature = algorithm(scheme);
        signature.initSign(key);
        signature.update(message.getBytes(StandardCharsets.UTF_8));
        return base64(signature.sign());
    }

    static boolean verify(String scheme, PublicKey key, String text, byte[] message)
            throws Exception {
        Signature signature = algorithm(scheme);
        signature.initVerify(key);
        signature.update(message);
        return signature.verify(Base64.getDecoder().decode(text));
    }

    static void makeKeys(Path privateFile, Path publicFile) throws Exception {
        KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
        generator.initialize(2048);
        var pair = generator.generateKeyPair();
        Files.writeString(privateFile, pem("PRIVATE KEY", pair.getPrivate().getEncoded()));
        Files.writeString(publicFile, pem("PUBLIC KEY", pair.getPublic().getEncoded()));
    }

    static PrivateKey privateKey(Path file) throws Exception {
        return KeyFactory.getInstance("RSA").generatePrivate(new PKCS8EncodedKeySpec(der(file)));
    }

    static PublicKey publicKey(Path file) throws Exception {
        return KeyFactory.getInstance("RSA").generatePublic(new X509EncodedKeySpec(der(file)));
    }

    static byte[] der(Path file) throws Exception {
        return Base64.getMimeDecoder().decode(
                Files.readString(file).replaceAll("-----[A-Z ]+-----", ""));
    }

    static String pem(String what, byte[] der) {
        return "-----BEGIN " + what + "-----\n"
                + Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(der)
                + "\n-----END " + what + "-----\n";
    }

    static String base64(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes);
    }
}
